"""What classes of other libraries compute, tried; and what the verbs make of it."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bnkit
from bnkit.behaviour import activation_of, affine_of, behaviour_of, name_of_activation
from bnkit.norms import why_frozen, why_incomparable, why_same_in_both_modes
from bnkit.roles import is_batch_norm
from bnkit.surgery.conversion.kinds import KINDS
from surgery.folding.states import randomised

IMAGES = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(0))


class Act(nn.BatchNorm2d):
    """Drop-out and an activation are children, as in many image models."""

    def __init__(self, features, act=None, **options):
        super().__init__(features, **options)
        self.drop, self.act = nn.Identity(), nn.ReLU() if act is None else act

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class Functional(nn.Module):
    """Derives from nothing of torch's, and its activation is a function."""

    def __init__(self, features):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(features) + 0.5)
        self.bias = nn.Parameter(torch.randn(features))
        self.register_buffer("running_mean", torch.randn(features))
        self.register_buffer("running_var", torch.rand(features) + 0.5)

    def forward(self, x):
        state = self.running_mean, self.running_var, self.weight, self.bias
        return F.silu(F.batch_norm(x, *state, self.training, 0.2, 1e-3))


class FixedBatchNorm(nn.Module):
    """Without an attribute for eps, as in networks that detect objects."""

    def __init__(self, features):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(features) + 0.5)

    def forward(self, x):
        weight, bias, mean, variance = (
            t.view(1, -1, 1, 1)
            for t in (self.weight, self.bias, self.running_mean, self.running_var)
        )
        return (x - mean) * (variance + 1e-5).rsqrt() * weight + bias


class NoAffine(nn.Module):
    """Frozen, and without weight and bias."""

    def __init__(self, features):
        super().__init__()
        self.register_buffer("running_mean", torch.rand(features))
        self.register_buffer("running_var", torch.rand(features) + 0.5)

    def forward(self, x):
        mean, variance = (t.view(1, -1, 1, 1) for t in (self.running_mean, self.running_var))
        return (x - mean) / (variance + 1e-3).sqrt()


class Always(nn.modules.batchnorm._BatchNorm):
    """Normalises by the mini-batch in both modes."""

    def forward(self, x):
        affine = self.weight, self.bias
        return F.batch_norm(x, self.running_mean, self.running_var, *affine, True, self.momentum)


class KeptShare(nn.Module):
    """Its momentum is the share that is kept, and its γ has another name."""

    def __init__(self, features, momentum=0.9):
        super().__init__()
        self.momentum, self.eps = momentum, 1e-5
        self.log_gamma = nn.Parameter(torch.linspace(-1, 1, features))
        self.beta = nn.Parameter(torch.linspace(0, 2, features))
        self.register_buffer("running_mean", torch.linspace(-3, 3, features))
        self.register_buffer("running_var", torch.linspace(0.5, 2, features))

    def forward(self, x):
        mean, variance = self.running_mean, self.running_var
        if self.training:
            mean, variance = x.mean(0), x.var(0)
            with torch.no_grad():
                self.running_mean.mul_(self.momentum).add_(mean * (1 - self.momentum))
                self.running_var.mul_(self.momentum).add_(variance * (1 - self.momentum))
        return (x - mean) / (variance + self.eps).sqrt() * self.log_gamma.exp() + self.beta


class Flow(nn.Module):
    """Has no telling name, and returns a pair."""

    def __init__(self, features):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, x):
        mean, variance = self.running_mean, self.running_var
        if self.training:
            mean, variance = x.mean(0), x.var(0)
            self.running_mean.lerp_(mean.detach(), 0.1)
            self.running_var.lerp_(variance.detach(), 0.1)
        return (x - mean) / (variance + 1e-5).sqrt(), variance.log().sum()


# share, whether a row depends on its companions in eval and in training mode, is_plain, activation
SHOWN = {
    "child": (lambda: Act(3), 0.1, False, True, True, "relu"),
    "cumulative": (lambda: Act(3, momentum=None), 1.0, False, True, True, "relu"),
    "no activation": (lambda: Act(3, nn.Identity()), 0.1, False, True, True, None),
    "function": (lambda: Functional(3), 0.2, False, True, True, "silu"),
    "frozen": (lambda: FixedBatchNorm(3), 0.0, False, False, True, None),
    "frozen, no affine": (lambda: NoAffine(3), 0.0, False, False, True, None),
    "always": (lambda: Always(3), 0.1, True, True, False, None),
    "kept share": (lambda: KeptShare(3), 0.1, False, True, False, None),
    "pair": (lambda: Flow(3), 0.1, False, True, False, None),
    "torch's": (lambda: nn.BatchNorm2d(3, momentum=0.3), 0.3, False, True, True, None),
    "ours": (lambda: bnkit.BatchNorm2d(3), 0.1, False, True, True, None),
    "ours, frozen": (lambda: KINDS["frozen"].classes[1](3), 0.0, False, False, True, None),
    "untracked": (
        lambda: nn.BatchNorm2d(3, track_running_stats=False),
        *(0.0, True, True, True, None),
    ),
}


@pytest.mark.parametrize(("make", "share", "in_eval", "training", "plain", "act"), SHOWN.values())
def test_what_a_layer_computes(make, share, in_eval, training, plain, act):
    layer = make()
    before = {name: t.clone() for name, t in layer.state_dict().items()}
    found = behaviour_of(layer)
    assert found.share == pytest.approx(share, abs=1e-5)
    assert (found.by_batch_in_eval, found.by_batch_in_training) == (in_eval, training)
    assert (found.is_plain, found.activation_name) == (plain, act)
    assert layer.training
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name])


AFFINE = [name for name in SHOWN if name not in ("always", "pair", "untracked")]


@pytest.mark.parametrize("name", AFFINE)
def test_the_map_of_eval_mode(name):
    layer = SHOWN[name][0]()
    if name != "kept share":
        randomised(nn.Sequential(layer))
    layer = layer.double().eval()
    x = IMAGES.double()[:, :, 0, 0] if isinstance(layer, KeptShare) else IMAGES.double()
    y, ending = affine_of(layer).of(x), activation_of(layer)
    expected = layer(x)
    torch.testing.assert_close(y if ending is None else ending(y), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "why"), [("always", "even in eval mode it no"), ("pair", "retu")])
def test_what_is_not_affine_says_why(name, why):
    with pytest.raises(ValueError, match=why):
        affine_of(SHOWN[name][0]())


def test_an_activation_that_bnkit_does_not_know_is_its_module():
    layer = Act(3, nn.LeakyReLU(0.3))
    assert behaviour_of(layer).activation is layer.act
    assert behaviour_of(layer).activation_name is None


@pytest.mark.parametrize("act", [nn.SiLU, nn.Hardswish, nn.ReLU, nn.LeakyReLU, nn.ReLU6])
def test_an_activation_in_place_has_the_name_of_one_that_is_not(act):
    assert name_of_activation(act(inplace=True)) == name_of_activation(act()) is not None
    assert bnkit.convert(nn.Sequential(Act(3, act(inplace=True))), "frozen", IMAGES)[0] is not None


def test_a_clipping_layer_is_not_taken_for_linear():
    class Clipped(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).clamp(-10, 10)

    assert behaviour_of(Clipped(3)).affine is None


def test_the_trial_of_a_class_is_made_once_and_follows_the_state():
    layer = Act(3)
    first = behaviour_of(layer).affine
    with torch.no_grad():
        layer.running_var.fill_(4.0)
    assert torch.allclose(2 * behaviour_of(layer).affine.scale, first.scale, rtol=1e-5)
    with torch.no_grad():
        layer.running_var.fill_(torch.nan)
    assert "not finite" in behaviour_of(layer).why_not_affine


def test_layers_of_int8_models_are_tried_on_int8_values():
    ao = torch.ao.quantization
    model = nn.Sequential(ao.QuantStub(), nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # eager quantisation is deprecated
        model.eval().qconfig = ao.get_default_qconfig("fbgemm")
        ao.prepare(model, inplace=True)(IMAGES)
        ao.convert(model, inplace=True)
        found = behaviour_of(model[3])
        assert why_same_in_both_modes(model, model[3]) == "frozen: it is a BatchNorm2d"
    assert (found.by_batch_in_eval, found.by_batch_in_training) == (False, False)
    assert found.why_not_affine.startswith("its class has a forward of its own, for inputs of")


def test_verbs_ask_how_it_behaves_and_not_for_its_name():
    assert is_batch_norm(Flow(2))
    assert why_incomparable(Always(2)).startswith("even in eval mode it normalises by")
    with pytest.raises(ValueError, match="there is nothing to measure: 0: even in eval mode it"):
        bnkit.recalibrate(nn.Sequential(Always(2)), torch.randn(5, 2))
    model = nn.Sequential(FixedBatchNorm(3))
    assert why_frozen(model, model[0]) == "frozen: it is a FixedBatchNorm"
    assert why_frozen(model, KeptShare(3)) is None


@pytest.mark.parametrize("name", ["child", "function", "frozen", "no activation"])
def test_it_is_folded_and_its_activation_stays(name):
    net = nn.Sequential(nn.Conv2d(3, 3, 3, bias=False), SHOWN[name][0](), nn.Conv2d(3, 2, 1))
    net = randomised(net).eval()
    plan = bnkit.surgery.plan_folding(net, IMAGES)
    assert [edit.layer for edit in plan.edits] == ["1"]
    assert plan.proof.error_in_float64 < 1e-13
    assert type(plan.apply(net)[1]) in (nn.ReLU, nn.SiLU, nn.Identity)
    again = bnkit.surgery.replay(net, [edit.structure for edit in plan.edits])
    again.load_state_dict(plan.apply(net).state_dict())
    torch.testing.assert_close(again(IMAGES), net(IMAGES), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("act", [nn.ReLU(), nn.Mish()], ids=str)
def test_where_no_layer_takes_it_in_it_becomes_an_affine_map_and_its_activation(act):
    net = randomised(nn.Sequential(nn.ReLU(), Act(3, act), nn.ReLU())).eval()
    removed = bnkit.remove(net, IMAGES)
    assert not any(is_batch_norm(module) for module in removed.modules())
    torch.testing.assert_close(removed(IMAGES), net(IMAGES), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["frozen", "bnkit", "sync"])
@pytest.mark.parametrize(
    "name", ["child", "function", "no activation", "cumulative", "frozen, no affine"]
)
def test_it_becomes_another_kind_with_its_activation(name, kind):
    net = randomised(nn.Sequential(SHOWN[name][0]())).eval()
    changed = bnkit.convert(net, kind, IMAGES)
    assert changed[0].activation == SHOWN[name][5]
    inside = [] if SHOWN[name][5] is None else [changed[0].norm]
    assert list(changed[0].children()) == inside
    if name == "function":
        assert (changed[0].eps, changed[0].momentum) == (1e-3, 0.2)
    torch.testing.assert_close(changed(IMAGES), net(IMAGES), rtol=1e-6, atol=1e-6)
    if kind == "bnkit" and name != "frozen, no affine":
        torch.testing.assert_close(changed.train()(IMAGES), net.train()(IMAGES))
        same = changed[0].running_var, net[0].running_var
        torch.testing.assert_close(*same, rtol=1e-5, atol=1e-6)


def test_one_that_trains_otherwise_is_left_alone_by_conversion():
    class Halved(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x / 2 if self.training else x)

    plan = bnkit.surgery.plan_conversion(nn.Sequential(Halved(3)), "sync", IMAGES)
    assert plan.left_alone[0].why.endswith("which does not train as torch's batch norm")


@pytest.mark.parametrize("name", ["child", "function", "frozen", "frozen, no affine"])
def test_it_becomes_a_group_norm_that_is_calibrated_on_what_it_gave(name):
    net = randomised(nn.Sequential(nn.Conv2d(3, 3, 3), SHOWN[name][0]())).eval()
    plan = bnkit.surgery.plan_conversion(net, "group", [IMAGES, 2 * IMAGES], num_groups=1)
    changed = plan.apply(net)
    assert [edit.layer for edit in plan.edits] == ["1"]
    maps = net[0](torch.cat([IMAGES, 2 * IMAGES])).double()
    made = changed[1]
    affine = made.weight.double(), made.bias.double()
    after = F.group_norm(maps, 1, *affine, eps=made.eps)
    before = affine_of(net[1]).of(maps)
    for moment in (torch.mean, torch.std):
        torch.testing.assert_close(moment(after, (0, 2, 3)), moment(before, (0, 2, 3)))


@pytest.mark.parametrize("name", ["child", "function", "no activation", "cumulative"])
def test_it_is_accelerated_with_its_activation(name):
    net = randomised(nn.Sequential(nn.Conv2d(3, 3, 3), SHOWN[name][0]()))
    plan = bnkit.surgery.plan_acceleration(net, IMAGES)
    fast = plan.apply(net)
    assert [edit.operation for edit in plan.edits] == ["convert_layer"]
    torch.testing.assert_close(fast.train()(IMAGES), net.train()(IMAGES))
    torch.testing.assert_close(fast.eval()(IMAGES), net.eval()(IMAGES))


@pytest.mark.parametrize("name", ["frozen", "kept share", "always"])
def test_what_trains_otherwise_is_not_accelerated(name):
    x = IMAGES[:, :, 0, 0] if name == "kept share" else IMAGES
    (left,) = bnkit.surgery.plan_acceleration(nn.Sequential(SHOWN[name][0]()), x).left_alone
    assert left.why.endswith("which does not compute what torch's does in both modes")


class KeepsDeviation(nn.BatchNorm2d):
    """What it calls a running variance is a standard deviation."""

    def forward(self, x):
        mean, deviation = self.running_mean, self.running_var
        if self.training:
            mean, deviation = x.mean((0, 2, 3)), x.std((0, 2, 3))
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(deviation, self.momentum)
        mean, scale, bias = (
            t.view(1, -1, 1, 1) for t in (mean, self.weight / (deviation + self.eps), self.bias)
        )
        return (x - mean) * scale + bias


class KeepsLogarithm(KeepsDeviation):
    """What it calls a running variance may be negative."""

    def forward(self, x):
        mean, logarithm = self.running_mean, self.running_var
        if self.training:
            mean, logarithm = x.mean((0, 2, 3)), x.var((0, 2, 3)).log()
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(logarithm, self.momentum)
        mean, scale = (t.view(1, -1, 1, 1) for t in (mean, (-logarithm / 2).exp()))
        return (x - mean) * scale


class Scaled(nn.BatchNorm2d):
    """Scales its input first, by a tensor that is no parameter, so its statistics are of that."""

    def __init__(self, features):
        super().__init__(features)
        self.gain = torch.linspace(0.5, 1.5, features)

    def forward(self, x):
        return super().forward(x * self.gain.view(-1, 1, 1).to(x))


class Turned(nn.BatchNorm1d):
    """Features are the last axis of sequences."""

    def forward(self, x):
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Flattened(nn.BatchNorm1d):
    """As `Turned`; a matrix it takes as torch's does."""

    def forward(self, x):
        return super().forward(x.flatten(0, -2)).view_as(x)


OTHER = {
    "deviation": (KeepsDeviation(3), IMAGES),
    "logarithm": (KeepsLogarithm(3), IMAGES),
    "scaled": (Scaled(3), IMAGES),
    "turned, as long as wide": (Turned(5), IMAGES[:, 0]),
    "turned": (Turned(5), IMAGES[:, 0, :4]),
    "flattened, as long as wide": (Flattened(5), IMAGES[:, 0]),
    "flattened": (Flattened(5), IMAGES[:, 0, :4]),
}


@pytest.mark.parametrize(("layer", "x"), OTHER.values(), ids=OTHER)
def test_statistics_that_are_not_those_of_the_input_are_left_alone(layer, x):
    net = nn.Sequential(nn.Identity(), layer, nn.BatchNorm1d(x.shape[1]) if x.dim() == 3 else layer)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    with pytest.raises(ValueError, match=r"nothing to measure: 1: its running statistics are not"):
        bnkit.recalibrate(net[:2], [x])
    with pytest.raises(ValueError, match=r"no gap to explain: 1: its running statistics are not"):
        bnkit.explain_gap(net[:2], x)
    if x.dim() == 3:  # beside one of torch's
        assert list(bnkit.explain_gap(net, x).left_out) == ["1"]
        plan = bnkit.recalibration.plan_recalibration(net, [x])
        assert [each.layer for each in plan.layers] == ["2"]
        assert plan.left_alone["1"].startswith("its running statistics are not the mean and the")
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("name", [name for name in OTHER if OTHER[name][1].dim() == 3])
@pytest.mark.parametrize("plan", ["folding", "removal", "acceleration", "conversion"])
def test_a_layer_of_another_axis_is_left_alone_and_hinders_no_other(name, plan):
    layer, x = OTHER[name]
    net = nn.Sequential(layer, nn.Conv1d(x.shape[1], 5, 1), nn.BatchNorm1d(5)).eval()
    arguments = (net, "bnkit", x) if plan == "conversion" else (net, x)
    made = getattr(bnkit.surgery, f"plan_{plan}")(*arguments)
    assert [edit.layer for edit in made.edits] == ["2"]
    assert [left.layer for left in made.left_alone] == ["0"]


def test_a_negative_logarithm_is_no_negative_variance():
    net = nn.Sequential(nn.Conv2d(3, 3, 1), KeepsLogarithm(3), nn.ReLU(), nn.Conv2d(3, 2, 1))
    with torch.no_grad():
        net[1].running_var.fill_(-0.5)
    found = {finding.rule for finding in bnkit.diagnose(net, [IMAGES, -IMAGES]).findings}
    assert not found & {"non-finite", "collapsed-variance"}


def test_a_layer_that_turns_its_input_by_itself_is_on_no_wrong_axis():
    net = nn.Sequential(nn.Linear(5, 5), Turned(5), nn.ReLU(), nn.Linear(5, 2))
    found = {finding.rule for finding in bnkit.diagnose(net, [IMAGES[:, 0]]).findings}
    assert "wrong-axis" not in found
