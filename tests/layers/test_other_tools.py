"""Tools of other packages on what `accelerate` and `convert` make: right, or refused with an error.

docs/layers.md has a table of what was run. What is not installed is skipped.
"""

import copy

import pytest
import torch
from torch import nn
from torch.ao import quantization
from torch.ao.quantization import quantize_fx

import bnkit
from bnkit.layers.activated import ActivatedNorm

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch.ao
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),  # of its observers
]
IMAGES = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.act = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.SiLU()
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        y = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        return torch.relu(y + x[..., 2:-2, 2:-2])


def network():
    """A network of torch's layers in eval mode, its statistics and parameters not as at first."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), Block())
    model.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)))
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.normal_(layer.bias)
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return model.eval()


MADE = {
    "accelerate": lambda model: bnkit.accelerate(model, IMAGES),
    "convert": lambda model: bnkit.convert(model, "bnkit"),
}
made = pytest.mark.parametrize("made", MADE.values(), ids=MADE)


def averaged(model):
    averaged = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    averaged.update_parameters(model)
    torch.optim.swa_utils.update_bn([IMAGES, IMAGES + 1], averaged)
    return averaged.eval()


def by_the_mini_batch(model):
    torch.func.replace_all_batch_norm_modules_(model)
    return model.train()


def fused_by_fx(model):
    from torch.fx.experimental.optimization import fuse  # noqa: PLC0415  warns when imported

    return fuse(model)


def of_timm(name):
    def tool(model):
        parts = name.split(".")
        tool = pytest.importorskip("timm." + ".".join(parts[:-1]))
        return getattr(tool, parts[-1])(model).eval()

    return tool


def thawed_by_timm(model):
    return of_timm("utils.model.unfreeze_batch_norm_2d")(
        of_timm("utils.model.freeze_batch_norm_2d")(model)
    )


def kept_by_timm(model):
    ema = pytest.importorskip("timm.utils").ModelEmaV3(model)
    ema.update(model)
    return ema.module.eval()


def frozen_by_torchvision(model):
    """torchvision's frozen layers, which take the checkpoint."""
    frozen = pytest.importorskip("torchvision").ops.FrozenBatchNorm2d
    other = network()
    other[1], other[3].bn1, other[3].bn2 = frozen(8), frozen(8), frozen(8)
    other.load_state_dict(model.state_dict())
    return other


def measured_by_fvcore(model):
    tool = pytest.importorskip("fvcore.nn.precise_bn")
    tool.update_bn_stats(model.train(), [IMAGES, IMAGES + 1], 2)
    return model.eval()


TOOLS = {
    "torch.nn.SyncBatchNorm.convert_sync_batchnorm": nn.SyncBatchNorm.convert_sync_batchnorm,
    "torch.func.replace_all_batch_norm_modules_": by_the_mini_batch,
    "torch.optim.swa_utils.update_bn": averaged,
    "torch.fx.experimental.optimization.fuse": fused_by_fx,
    "torch.ao.quantization.quantize_fx.fuse_fx": quantize_fx.fuse_fx,
    "torch.export.export": lambda model: torch.export.export(model, (IMAGES,)).module(),
    "timm.utils.model.freeze_batch_norm_2d": of_timm("utils.model.freeze_batch_norm_2d"),
    "timm.utils.model.unfreeze_batch_norm_2d": thawed_by_timm,
    "timm.utils.ModelEmaV3": kept_by_timm,
    "timm.layers.convert_sync_batchnorm": of_timm("layers.convert_sync_batchnorm"),
    "timm.layers.convert_splitbn_model": of_timm("layers.convert_splitbn_model"),
    "timm.utils.reparameterize_model": of_timm("utils.reparameterize_model"),
    "torchvision.ops.FrozenBatchNorm2d": frozen_by_torchvision,
    "fvcore.nn.precise_bn.update_bn_stats": measured_by_fvcore,
}


@made
@pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)
def test_a_tool_makes_of_it_what_it_makes_of_torchs(tool, made):
    plain = network()
    changed = made(plain).eval()
    torch.testing.assert_close(tool(changed)(IMAGES), tool(plain)(IMAGES), rtol=1e-4, atol=1e-4)


@made
def test_torchvisions_feature_extractor_takes_it(made):
    tool = pytest.importorskip("torchvision.models.feature_extraction")
    plain = network()
    changed = made(plain).eval()
    features = tool.create_feature_extractor(changed, ["3.conv2"])
    torch.testing.assert_close(
        features(IMAGES)["3.conv2"],
        plain[3].conv2(plain[3].act(bn1_of(plain))),
        atol=1e-4,
        rtol=1e-4,
    )


def bn1_of(plain):
    return plain[3].bn1(plain[3].conv1(plain[:3](IMAGES)))


def test_torchvisions_models_take_the_layer():
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    theirs = models.resnet18(weights=None)
    ours = models.resnet18(weights=None, norm_layer=bnkit.BatchNorm2d)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-3, atol=1e-3)


# --- quantisation: tables by the exact class know torch's only


def quantised(model, prepare, convert, settings):
    prepared = prepare(model, settings("x86"), (IMAGES,))
    for _ in range(3):
        prepared(IMAGES)
    return convert(prepared.eval())


FX = {
    "after training": (quantize_fx.prepare_fx, quantization.get_default_qconfig_mapping, False),
    "while training": (
        quantize_fx.prepare_qat_fx,
        quantization.get_default_qat_qconfig_mapping,
        True,
    ),
}


@made
@pytest.mark.parametrize("way", FX.values(), ids=FX)
def test_quantisation_by_fx_is_as_close_as_with_torchs_layers(way, made):
    prepare, settings, training = way
    plain = network()
    found = []
    for model in (made(plain), plain):
        quantised_model = quantised(
            copy.deepcopy(model).train(training), prepare, quantize_fx.convert_fx, settings
        )
        found.append(quantised_model(IMAGES))
    # Where torch folds the batch norm into the convolution, ours is computed in floats after it.
    error = (found[0] - found[1]).abs().max() / found[1].abs().max()
    assert error < 0.1  # of 8 bits


def quantised_by_torchao(model):
    tools = pytest.importorskip("torchao.quantization.pt2e")
    steps = pytest.importorskip("torchao.quantization.pt2e.quantize_pt2e")
    x86 = pytest.importorskip("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    settings = x86.get_default_x86_inductor_quantization_config(is_qat=True)
    exported = torch.export.export(model.train(), (IMAGES,)).module()
    prepared = steps.prepare_qat_pt2e(exported, x86.X86InductorQuantizer().set_global(settings))
    for _ in range(3):
        prepared(IMAGES)
    tools.move_exported_model_to_eval(prepared)
    return steps.convert_pt2e(prepared)(IMAGES)


def test_quantisation_by_torchao_while_training_takes_torchs_or_no_guard():
    expected = quantised_by_torchao(network())
    guarded = bnkit.convert(network(), "bnkit")
    # It looks for the running statistics themselves, and the guard gives a copy.
    with pytest.raises(ValueError, match="Expected get_attr node"):
        quantised_by_torchao(guarded)
    back = quantised_by_torchao(bnkit.convert(guarded, "torch"))
    torch.testing.assert_close(back, expected)
    unguarded = quantised_by_torchao(bnkit.convert(network(), "bnkit", guard=False))
    assert (unguarded - expected).abs().max() < 0.1 * expected.abs().max()  # of 8 bits


@made
def test_fuse_modules_refuses_it_until_it_is_torchs(made):
    paths = [["0", "1", "2"], ["3.conv1", "3.bn1"], ["3.conv2", "3.bn2"]]
    plain = network()
    changed = made(plain).eval()
    with pytest.raises(AssertionError, match="did not find fuser method for"):
        quantization.fuse_modules(changed, paths)
    back = bnkit.convert(changed, "torch").eval()
    torch.testing.assert_close(
        quantization.fuse_modules(back, paths)(IMAGES), plain(IMAGES), rtol=1e-4, atol=1e-4
    )


@made
def test_quantisation_by_modules_refuses_it_until_it_is_torchs(made):
    changed = made(network()[:3]).eval()

    def quantise(model):
        wrapped = quantization.QuantWrapper(model).eval()
        wrapped.qconfig = quantization.get_default_qconfig("x86")
        prepared = quantization.prepare(wrapped)
        prepared(IMAGES)
        return quantization.convert(prepared)

    with pytest.raises(NotImplementedError, match="QuantizedCPU"):
        quantise(changed)(IMAGES)
    back, plain = bnkit.convert(changed, "torch").eval(), network()[:3]
    torch.testing.assert_close(quantise(back)(IMAGES), quantise(plain)(IMAGES))


# --- Opacus: its validators are looked up by the exact class


@made
def test_opacus_sees_it_once_it_is_registered(made, monkeypatch):
    opacus = pytest.importorskip("opacus")
    tables = opacus.validators.ModuleValidator
    model = made(network()).train()
    assert tables.is_valid(model)  # by mistake, and this stops it:
    with pytest.raises(NotImplementedError, match="trainable layer with buffers"):
        opacus.GradSampleModule(model)
    for table in (tables.VALIDATORS, tables.FIXERS):
        monkeypatch.setitem(table, bnkit.BatchNorm2d, table[nn.BatchNorm2d])
    assert len(tables.validate(model)) == 3
    fixed = tables.fix(model)
    assert tables.is_valid(fixed)
    assert [type(each) for each in fixed.modules()].count(nn.GroupNorm) == 3
    activated = [each for each in fixed.modules() if isinstance(each, ActivatedNorm)]
    assert all(isinstance(each.norm, nn.GroupNorm) for each in activated)
    assert len(activated) == sum(isinstance(each, ActivatedNorm) for each in model.modules())
    assert not tables.is_valid(bnkit.convert(made(network()), "torch").train())
