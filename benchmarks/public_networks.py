"""Public architectures with random weights, and the smallest mini-batches that they take.

They need torchvision, timm, transformers and segmentation_models_pytorch, which are imported where
they are used. `NETWORKS` has an entry for each: a function that builds the network as its library
gives it, in training mode, and one that makes mini-batches of so many rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Network:
    """How a network is built, and how mini-batches for it are made."""

    build: Callable[[], nn.Module]
    batch: Callable[[int], Any]


def images(rows: int, *, side: int = 64, channels: int = 3, depth: tuple[int, ...] = ()) -> Tensor:
    """Return images like the usual normalised ones: mean 0, standard deviation 1."""
    return torch.randn(rows, channels, *depth, side, side)


def _torchvision(name: str, **options: Any) -> nn.Module:
    models = import_module("torchvision.models")
    return models.get_model(name, weights=None, **options)  # type: ignore[no-any-return]


def _timm(name: str, **options: Any) -> nn.Module:
    timm = import_module("timm")
    return timm.create_model(name, pretrained=False, **options)  # type: ignore[no-any-return]


def _transformers(model: str, config: str, **options: Any) -> nn.Module:
    transformers = import_module("transformers")
    made = getattr(transformers, model)(getattr(transformers, config)(**options))
    return made.train()  # type: ignore[no-any-return]


def _segmentation(kind: str, encoder: str) -> nn.Module:
    build = getattr(import_module("segmentation_models_pytorch"), kind)
    return build(encoder, encoder_weights=None, classes=3)  # type: ignore[no-any-return]


NETWORKS: dict[str, Network] = {}


def _add(name: str, build: Callable[[], nn.Module], batch: Callable[[int], Any] = images) -> None:
    NETWORKS[name] = Network(build, batch)


for _name, _side in {
    "resnet18": 64, "resnet50": 64, "resnext50_32x4d": 64, "wide_resnet50_2": 64, "vgg11_bn": 64,
    "densenet121": 64, "mobilenet_v2": 64, "mobilenet_v3_small": 64, "mobilenet_v3_large": 64,
    "mnasnet0_5": 64, "shufflenet_v2_x0_5": 64, "efficientnet_b0": 64, "efficientnet_v2_s": 64,
    "regnet_x_400mf": 64, "regnet_y_400mf": 64, "squeezenet1_1": 64, "alexnet": 64, "vgg11": 64,
    "convnext_tiny": 64, "googlenet": 96, "inception_v3": 96, "swin_t": 64, "maxvit_t": 224,
    "vit_b_32": 224,
}.items():  # fmt: skip
    _options = {"init_weights": False} if _name in ("googlenet", "inception_v3") else {}
    _add(f"tv/{_name}", partial(_torchvision, _name, **_options), partial(images, side=_side))
for _name in ("fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large",
              "lraspp_mobilenet_v3_large"):  # fmt: skip
    _add(f"tv/{_name}", partial(_torchvision, _name, weights_backbone=None))
for _name in ("r3d_18", "mc3_18", "r2plus1d_18"):
    _add(f"tv/{_name}", partial(_torchvision, _name), partial(images, side=32, depth=(8,)))
_add("tv/s3d", partial(_torchvision, "s3d"), partial(images, side=64, depth=(16,)))

for _name in """
    efficientnet_b0 efficientnet_lite0 tf_efficientnet_b0 tf_efficientnetv2_b0 mixnet_s mnasnet_100
    mobilenetv2_100 mobilenetv3_small_100 mobilenetv3_large_100 tf_mobilenetv3_small_100
    mobilenetv4_conv_small fbnetc_100 fbnetv3_b spnasnet_100 tinynet_e lcnet_050 ghostnet_050
    ghostnetv2_100 repghostnet_050 regnetx_002 regnety_002 regnetv_040 repvgg_a0 mobileone_s0
    resnet18 resnet26d resnetblur18 seresnet18 ecaresnet26t skresnet18 resnest14d res2net50_26w_4s
    densenet121 dpn48b vovnet39a ese_vovnet19b_dw cspresnet50 cspdarknet53 darknet53 hrnet_w18_small
    dla34 selecsls42b hardcorenas_a rexnet_100 tresnet_m inception_v3 inception_v4
    inception_resnet_v2 xception41 nasnetalarge levit_128s repvit_m0_9 mobilevit_xxs mobilevitv2_050
    coatnet_nano_rw_224 maxvit_tiny_rw_224 efficientformer_l1 efficientformerv2_s0 fastvit_t8
    starnet_s1 convnext_atto efficientvit_b0 efficientvit_m0 edgenext_xx_small poolformer_s12
    tiny_vit_5m_224 nextvit_small volo_d1_224 crossvit_tiny_240 mobilenet_edgetpu_v2_xs
""".split():  # fmt: skip
    _side = {
        "coatnet_nano_rw_224": 224, "maxvit_tiny_rw_224": 224, "efficientformer_l1": 224,
        "efficientformerv2_s0": 224, "levit_128s": 224, "crossvit_tiny_240": 240,
        "volo_d1_224": 224, "efficientvit_m0": 224, "tiny_vit_5m_224": 224, "inception_v3": 96,
        "inception_v4": 96, "inception_resnet_v2": 96, "xception41": 96, "nasnetalarge": 96,
        "nextvit_small": 96,
    }.get(_name, 64)  # fmt: skip
    _add(f"timm/{_name}", partial(_timm, _name), partial(images, side=_side))


def _pixels(rows: int, *, side: int = 64) -> dict[str, Tensor]:
    return {"pixel_values": images(rows, side=side)}


def _waves(rows: int) -> dict[str, Tensor]:
    return {"input_values": torch.randn(rows, 4000)}


_SMALL_DETR: dict[str, Any] = {
    "use_timm_backbone": False, "use_pretrained_backbone": False, "d_model": 32,
    "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 5,
}  # fmt: skip
_SPEECH: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "conv_dim": (16, 16), "conv_kernel": (10, 3), "conv_stride": (5, 2),
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 2,
}  # fmt: skip


def _detr(kind: str) -> nn.Module:
    backbone = import_module("transformers").ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic",
        out_features=["stage2"],
    )  # fmt: skip
    options = {**_SMALL_DETR, "backbone_config": backbone, "backbone": None}
    return _transformers(f"{kind}Model", f"{kind}Config", **options)


def _rt_detr() -> nn.Module:
    backbone = import_module("transformers").RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    return _transformers(
        "RTDetrModel", "RTDetrConfig", backbone_config=backbone, encoder_in_channels=[16, 32, 64],
        encoder_hidden_dim=32, d_model=32, num_queries=5, decoder_layers=1, encoder_ffn_dim=32,
        decoder_ffn_dim=32, decoder_in_channels=[32, 32, 32], encoder_attention_heads=2,
        decoder_attention_heads=2, feat_strides=[8, 16, 32],
    )  # fmt: skip


for _kind, _options in {
    "ResNet": {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1]},
    "RegNet": {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "groups_width": 8},
    "MobileNetV1": {"depth_multiplier": 0.25},
    "MobileNetV2": {"depth_multiplier": 0.35},
    "EfficientNet": {"image_size": 64},
    "MobileViT": {"image_size": 64},
    "MobileViTV2": {"image_size": 64},
    "PoolFormer": {"hidden_sizes": [16, 16, 16, 16], "depths": [1, 1, 1, 1]},
    "ConvNext": {"hidden_sizes": [16, 16, 16, 16], "depths": [1, 1, 1, 1]},
    "SegformerModel": {},
}.items():  # fmt: skip
    _stem = _kind.removesuffix("Model")
    _add(
        f"hf/{_stem.lower()}",
        partial(_transformers, f"{_stem}Model", f"{_stem}Config", **_options),
        _pixels,
    )
_add("hf/levit", partial(_transformers, "LevitModel", "LevitConfig"), partial(_pixels, side=224))
_add("hf/detr", partial(_detr, "Detr"), _pixels)
_add("hf/conditional_detr", partial(_detr, "ConditionalDetr"), _pixels)
_add("hf/rt_detr", _rt_detr, partial(_pixels, side=64))
for _kind in ("Wav2Vec2Conformer", "Wav2Vec2"):
    _add(
        f"hf/{_kind.lower()}",
        partial(_transformers, f"{_kind}Model", f"{_kind}Config", **_SPEECH),
        _waves,
    )

for _kind, _encoder in (
    ("Unet", "resnet18"), ("PAN", "resnet18"), ("DeepLabV3Plus", "resnet18"), ("FPN", "resnet18"),
    ("Linknet", "resnet18"), ("UnetPlusPlus", "mobilenet_v2"),
):  # fmt: skip
    _add(
        f"smp/{_kind.lower()}_{_encoder}",
        partial(_segmentation, _kind, _encoder),
        partial(images, side=128 if _kind == "PAN" else 64),
    )
