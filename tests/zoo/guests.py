"""Public networks as guests: how each is built with random weights, and its smallest mini-batches.

They live in an environment of their own; see `matrix.py`. `benchmarks/doctor.py` takes them for
healthy networks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch


@dataclass(frozen=True)
class Guest:
    """One network: its library, how it is built, and mini-batches of so many samples.

    Both draw from torch's global generator.
    """

    library: str
    build: Callable[[], Any]
    batch: Callable[[int], Any]


def images(size=64, depth=()):
    """Return a function of the number of samples that draws images."""
    return lambda samples: torch.randn(samples, 3, *depth, size, size)


def _torchvision(path, size=64, **options):
    def build():
        found = import_module("torchvision.models")
        for part in path.split("."):
            found = getattr(found, part)
        return found(weights=None, **options)

    return Guest("torchvision", build, images(size))


def _detector(name, size=64, **options):
    made = _torchvision(f"detection.{name}", size, weights_backbone=None, **options)
    return Guest(made.library, made.build, lambda samples: ([*made.batch(samples)],))


def _video(name, size=48, depth=8):
    made = _torchvision(f"video.{name}")
    return Guest(made.library, made.build, images(size, depth=(depth,)))


def _timm(name, size=64):
    def build():
        return import_module("timm").create_model(name, num_classes=10)

    return Guest("timm", build, images(size))


def _of_transformers(kind, config, **options):
    """Return a network of transformers, in training mode as the other libraries give theirs."""
    library = import_module("transformers")
    return getattr(library, kind)(getattr(library, config)(**options)).train()


def _transformers(kind, config, size=64, **options):
    return Guest(
        "transformers",
        lambda: _of_transformers(kind, config, **options),
        lambda samples: {"pixel_values": images(size)(samples)},
    )


def _detr(kind):
    """Return a small DETR, whose batch norms are frozen and have a class of their own."""
    small = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32}
    small |= {"decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2}

    def build():
        backbone = import_module("transformers").ResNetConfig(
            embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], out_features=["stage2"]
        )
        own = {"backbone_config": backbone, "backbone": None, "use_pretrained_backbone": False}
        return _of_transformers(
            f"{kind}Model",
            f"{kind}Config",
            use_timm_backbone=False,
            num_queries=5,
            **own,
            **small,
        )

    return Guest("transformers", build, lambda samples: {"pixel_values": images()(samples)})


def _speech(kind):
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    small |= {"intermediate_size": 32, "conv_dim": (16, 16), "conv_kernel": (10, 3)}
    small |= {"conv_stride": (5, 2), "num_feat_extract_layers": 2}
    small |= {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    return Guest(
        "transformers",
        lambda: _of_transformers(f"{kind}Model", f"{kind}Config", **small),
        lambda samples: {"input_values": torch.randn(samples, 4000)},
    )


def _segmentation(name, encoder, size=64):
    def build():
        made = getattr(import_module("segmentation_models_pytorch"), name)
        return made(encoder_name=encoder, encoder_weights=None)

    return Guest("segmentation-models", build, images(size))


_ASPP = {"weights_backbone": None, "num_classes": 4}
_SMALL = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}

# The smallest come first, so that an interrupted run has most of them.
GUESTS: dict[str, Guest] = {
    "squeezenet1_1": _torchvision("squeezenet1_1"),
    "resnet18": _torchvision("resnet18"),
    "mobilenet_v3_small": _torchvision("mobilenet_v3_small"),
    "mobilenet_v2": _torchvision("mobilenet_v2"),
    "mnasnet0_5": _torchvision("mnasnet0_5"),
    "shufflenet_v2_x0_5": _torchvision("shufflenet_v2_x0_5"),
    **{
        f"timm/{name}": _timm(name)
        for name in """
        efficientnet_b0 mobilenetv3_small_050 repvgg_a0 regnetx_002 regnety_002 lcnet_050
        tf_efficientnet_b0 tf_mobilenetv3_small_075 mobilenetv2_050 mnasnet_small ghostnet_050
        repghostnet_050 resnet10t convnext_atto mobilenetv4_conv_small
        """.split()
    },
    "transformers/resnet": _transformers(
        "ResNetForImageClassification", "ResNetConfig", embedding_size=8, **_SMALL
    ),
    "transformers/regnet": _transformers(
        "RegNetForImageClassification",
        "RegNetConfig",
        embedding_size=8,
        groups_width=8,
        **_SMALL,
    ),
    "transformers/mobilenet_v1": _transformers(
        "MobileNetV1ForImageClassification", "MobileNetV1Config", depth_multiplier=0.25
    ),
    "transformers/mobilenet_v2": _transformers(
        "MobileNetV2ForImageClassification", "MobileNetV2Config", depth_multiplier=0.35
    ),
    "transformers/bit": _transformers(
        "BitForImageClassification",
        "BitConfig",
        embedding_size=32,
        num_groups=4,
        depths=[1, 1, 1, 1],
        hidden_sizes=[32, 64, 96, 128],
    ),
    "transformers/poolformer": _transformers(
        "PoolFormerForImageClassification",
        "PoolFormerConfig",
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
    ),
    "transformers/convnext": _transformers(
        "ConvNextForImageClassification", "ConvNextConfig", **_SMALL
    ),
    "transformers/mobilevit": _transformers(
        "MobileViTForImageClassification",
        "MobileViTConfig",
        image_size=64,
        hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 8, 16, 24, 32, 48, 64],
    ),
    "transformers/mobilevitv2": _transformers(
        "MobileViTV2ForImageClassification",
        "MobileViTV2Config",
        image_size=64,
        width_multiplier=0.5,
    ),
    "transformers/vit": _transformers(
        "ViTForImageClassification",
        "ViTConfig",
        image_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    ),
    "transformers/segformer": _transformers(
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 24, 32],
        num_attention_heads=[1, 1, 2, 4],
        decoder_hidden_size=16,
    ),
    "transformers/cvt": _transformers(
        "CvtForImageClassification",
        "CvtConfig",
        depth=[1, 2, 3],  # at least one more in each stage, as its rates of depth demand
        embed_dim=[16, 48, 96],  # multiples of its 1, 3 and 6 heads
    ),
    "transformers/levit": _transformers("LevitForImageClassification", "LevitConfig", 224),
    "transformers/efficientnet": _transformers(
        "EfficientNetForImageClassification",
        "EfficientNetConfig",
        width_coefficient=0.5,
        depth_coefficient=0.5,
        hidden_dim=640,
    ),
    "transformers/rt_detr": _transformers(
        "RTDetrForObjectDetection",
        "RTDetrConfig",
        64,
        encoder_layers=1,
        decoder_layers=1,
        num_queries=10,
    ),
    "transformers/detr": _detr("Detr"),
    "transformers/conditional_detr": _detr("ConditionalDetr"),
    "transformers/wav2vec2": _speech("Wav2Vec2"),
    "transformers/wav2vec2_conformer": _speech("Wav2Vec2Conformer"),
    "smp/unet_resnet18": _segmentation("Unet", "resnet18"),
    "smp/fpn_mobilenet_v2": _segmentation("FPN", "mobilenet_v2"),
    "smp/pan_resnet18": _segmentation("PAN", "resnet18", 128),
    "smp/deeplabv3plus_resnet18": _segmentation("DeepLabV3Plus", "resnet18"),
    "regnet_x_400mf": _torchvision("regnet_x_400mf"),
    "regnet_y_400mf": _torchvision("regnet_y_400mf"),
    "efficientnet_b0": _torchvision("efficientnet_b0"),
    "mobilenet_v3_large": _torchvision("mobilenet_v3_large"),
    "googlenet": _torchvision("googlenet", init_weights=False),
    "r3d_18": _video("r3d_18"),
    "mc3_18": _video("mc3_18"),
    "r2plus1d_18": _video("r2plus1d_18"),
    "lraspp_mobilenet_v3_large": _torchvision("segmentation.lraspp_mobilenet_v3_large", **_ASPP),
    **{
        f"timm/{name}": _timm(name)
        for name in """
        mobileone_s0 repvit_m0_9 efficientnet_lite0 fbnetc_100 spnasnet_100 hardcorenas_a mixnet_s
        tf_mixnet_s tinynet_e ghostnetv2_100 resnet18 resnet26d skresnet18 resnext26ts gernet_s
        ese_vovnet19b_dw dla34 dla46_c selecsls42 hrnet_w18_small rexnet_100 vgg11_bn
        edgenext_xx_small mobilevit_xxs mobilevitv2_050
        efficientvit_b0 fastvit_t8 starnet_s1 poolformer_s12 hgnetv2_b0 fasternet_t0
        swiftformer_xs gcresnet33ts regnetz_005 resnest14d lambda_resnet26t
        mobilenetv4_conv_medium resnetblur18 seresnet50 ecaresnet26t resnetv2_50
        """.split()
    },
    "resnet50": _torchvision("resnet50"),
    "resnext50_32x4d": _torchvision("resnext50_32x4d"),
    "wide_resnet50_2": _torchvision("wide_resnet50_2"),
    "convnext_tiny": _torchvision("convnext_tiny"),
    "swin_t": _torchvision("swin_t"),
    "vit_b_32": _torchvision("vit_b_32", image_size=64),
    "fcn_resnet50": _torchvision("segmentation.fcn_resnet50", aux_loss=True, **_ASPP),
    "deeplabv3_mobilenet_v3_large": _torchvision(
        "segmentation.deeplabv3_mobilenet_v3_large", **_ASPP
    ),
    "ssdlite320_mobilenet_v3_large": _detector("ssdlite320_mobilenet_v3_large"),
    "fasterrcnn_mobilenet_v3_large_320_fpn": _detector("fasterrcnn_mobilenet_v3_large_320_fpn"),
    "densenet121": _torchvision("densenet121"),
    "efficientnet_v2_s": _torchvision("efficientnet_v2_s"),
    "inception_v3": _torchvision("inception_v3", 128, init_weights=False, aux_logits=False),
    **{
        f"timm/{name}": _timm(name)
        for name in """
        res2net50_26w_4s densenet121 dpn48b fbnetv3_b cspresnet50 cspdarknet53 tresnet_m
        darknet53 xception41 nextvit_small efficientnet_es
        """.split()
    },
    # At 64 pixels two values per channel are left, from which rounding grows with the depth.
    "timm/shvit_s1": _timm("shvit_s1", 128),
    "timm/levit_128s": _timm("levit_128s", 224),
    "timm/efficientformerv2_s0": _timm("efficientformerv2_s0", 224),
    "timm/efficientformer_l1": _timm("efficientformer_l1", 224),
    "timm/bat_resnext26ts": _timm("bat_resnext26ts", 256),
    "timm/inception_v4": _timm("inception_v4", 128),
    "timm/inception_resnet_v2": _timm("inception_resnet_v2", 128),
    "timm/efficientvit_m0": _timm("efficientvit_m0", 224),
    "timm/visformer_tiny": _timm("visformer_tiny", 224),
    "timm/tiny_vit_5m_224": _timm("tiny_vit_5m_224", 224),
    "timm/coatnet_nano_rw_224": _timm("coatnet_nano_rw_224", 224),
    "s3d": _video("s3d", 224, 16),
    "alexnet": _torchvision("alexnet"),
    "vgg11": _torchvision("vgg11", 32),
    "vgg11_bn": _torchvision("vgg11_bn", 32),
}
