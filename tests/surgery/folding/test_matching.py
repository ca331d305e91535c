"""Which layer takes a batch norm in, model by model."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnkit.surgery import add
from bnkit.surgery.folding import plan_folding
from surgery.folding.states import randomised

STANDS = "stands between it and a weight layer"


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


class Function(nn.Module):
    """A function as a module, so that chains are short to write."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def chain(*parts):
    parts = [p if isinstance(p, nn.Module) else Function(p) for p in parts]
    return randomised(nn.Sequential(*parts))


def transposed(x):
    return x.transpose(1, 2)


class Twice(nn.Module):
    def __init__(self, *names):
        super().__init__()
        self.fc, self.other, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm, self.second, self.names = nn.BatchNorm1d(4), nn.BatchNorm1d(4), names

    def forward(self, x):
        for name in self.names:
            x = x.relu() if name == "relu" else getattr(self, name)(x)
        return x


INTO = {
    "dense, vectors": (chain(nn.Linear(4, 3), nn.BatchNorm1d(3)), (5, 4), "0"),
    "dense, sequences, turned": (
        chain(nn.Linear(4, 3), transposed, nn.BatchNorm1d(3), transposed),
        (5, 6, 4),
        "0",
    ),
    "dense, sequences as long as they have features, turned": (
        chain(nn.Linear(4, 6), transposed, nn.BatchNorm1d(6), transposed),
        (5, 6, 4),
        "0",
    ),
    "dense, sequences as rows": (
        chain(nn.Linear(4, 3), lambda x: x.flatten(0, 1), nn.BatchNorm1d(3)),
        (5, 6, 4),
        "0",
    ),
    "dense, sequences of length 1: one channel for all features": (
        chain(nn.Linear(4, 3), nn.BatchNorm1d(1)),
        (5, 1, 4),
        "0",
    ),
    "dense, four axes": (
        chain(nn.Linear(4, 3), lambda x: x.permute(0, 3, 1, 2), nn.BatchNorm2d(3)),
        (5, 6, 2, 4),
        "0",
    ),
    "conv, padded": (chain(nn.Conv1d(4, 3, 3, padding=1), nn.BatchNorm1d(3)), (2, 4, 8), "0"),
    "conv, then flattened to vectors of one place": (
        chain(nn.Conv2d(4, 3, 2), nn.Flatten(), nn.BatchNorm1d(3)),
        (5, 4, 2, 2),
        "0",
    ),
    "transposed, grouped": (
        chain(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)),
        (2, 4, 3, 3),
        "0",
    ),
    "synchronised": (chain(nn.Linear(4, 3), nn.SyncBatchNorm(3)), (5, 4), "0"),
    "not affine": (chain(nn.Linear(4, 3), nn.BatchNorm1d(3, affine=False)), (5, 4), "0"),
    "features cut, the rest is not read": (
        chain(nn.Linear(4, 6), lambda x: x[:, 1:4], nn.BatchNorm1d(3)),
        (5, 4),
        "0",
    ),
    "dropout between": (
        chain(nn.Linear(4, 3), F.relu, nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 2)),
        (5, 4),
        "4",
    ),
    "conv after it, without padding": (
        chain(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2)),
        (2, 4, 5, 5),
        "1",
    ),
    "conv after it, padding that repeats": (
        chain(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect")),
        (2, 4, 5, 5),
        "1",
    ),
    "dense after it, through flatten": (
        chain(nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 2)),
        (2, 4, 3, 3),
        "2",
    ),
    "dense after it, through a turn": (
        chain(nn.BatchNorm1d(4), transposed, nn.Linear(4, 2)),
        (2, 4, 3),
        "2",
    ),
    "conv before it, through pooling by averages": (
        chain(nn.Conv2d(4, 6, 3), nn.AvgPool2d(2), nn.BatchNorm2d(6)),
        (2, 4, 8, 8),
        "0",
    ),
    "dense after it, through global pooling": (
        chain(nn.ReLU(), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
        (2, 4, 3, 3),
        "4",
    ),
    "conv before it, through upsampling": (
        chain(nn.Conv2d(4, 6, 3), nn.Upsample(scale_factor=2), nn.BatchNorm2d(6)),
        (2, 4, 6, 6),
        "0",
    ),
    "conv before it, through pixel shuffle": (
        chain(nn.Conv2d(4, 8, 3), nn.PixelShuffle(2), nn.BatchNorm2d(2)),
        (2, 4, 6, 6),
        "0",
    ),
    "conv after it, through padding by reflection": (
        chain(nn.ReLU(), nn.BatchNorm2d(4), nn.ReflectionPad2d(1), nn.Conv2d(4, 3, 3)),
        (2, 4, 6, 6),
        "3",
    ),
    "conv before it, through padding that only cuts": (
        chain(nn.Conv2d(4, 6, 3), lambda x: F.pad(x, (0, 0, -1, -2)), nn.BatchNorm2d(6)),
        (2, 4, 8, 8),
        "0",
    ),
    "each of the layers before its calls": (
        randomised(Twice("fc", "norm", "other", "norm")),
        (5, 4),
        ["fc", "other"],
    ),
    "the layer before it rather than the one after it": (
        chain(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)),
        (5, 4),
        "0",
    ),
}


@pytest.mark.parametrize(("model", "shape", "target"), INTO.values(), ids=INTO)
def test_a_batch_norm_goes_into_the_layer_that_it_fits(model, shape, target):
    x = random(*shape)
    plan = plan_folding(model, x)
    assert [edit.structure["target"] for edit in plan.edits] == [target]
    folded = plan.apply(model)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-5, atol=1e-5)
    # Other numbers of rows go the same way.
    torch.testing.assert_close(folded(x[:1]), model(x[:1]), rtol=1e-5, atol=1e-5)


def tied():
    model = Twice("fc", "norm", "relu", "other")
    model.other.weight = model.fc.weight
    return randomised(model)


class Read(nn.Module):
    """The output of the layer is read by a second one, leaves, or is looked at through a view."""

    def __init__(self, how):
        super().__init__()
        self.fc, self.norm, self.how = nn.Linear(4, 4), nn.BatchNorm1d(4), how

    def forward(self, x):
        x = self.fc(x)
        view = x.view(-1)
        y = self.norm(x)
        return self.how(x, view, y)


def hooked(layer):
    model = chain(nn.Linear(4, 3), nn.BatchNorm1d(3))
    model[layer].register_forward_hook(lambda _module, _inputs, output: output * 2)
    return model


def parametrised():
    model = chain(nn.Linear(4, 3), nn.BatchNorm1d(3))
    nn.utils.parametrizations.weight_norm(model[0])
    return model


class OwnLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x).relu()


def reads_weight():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x):
            return F.linear(self.norm(self.fc(x)), self.fc.weight)

    return randomised(Reads())


def padded_to_even(x):
    return F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))


ALONE = {
    "padding with zeros that this size does not need": (
        chain(nn.Conv2d(4, 3, 3), padded_to_even, nn.BatchNorm2d(3)),
        (2, 4, 6, 6),
        f"before it: pad() in '1' {STANDS}",
    ),
    "padding with ones, which are numbers of features, too": (
        chain(nn.Conv2d(4, 1, 3), lambda x: F.pad(x, (1, 1), value=1.0), nn.BatchNorm2d(1)),
        (2, 4, 6, 6),
        f"before it: pad() in '1' {STANDS}",
    ),
    "an activation between": (
        chain(nn.Linear(4, 3), nn.ReLU(), nn.BatchNorm1d(3)),
        (5, 4),
        f"before it: '1' (ReLU) {STANDS}",
    ),
    "a functional activation on the other side": (
        chain(F.gelu, nn.BatchNorm1d(4), torch.tanh, nn.Linear(4, 2)),
        (5, 4),
        f"before it: gelu() in '0' {STANDS}; after it: tanh() in '2' {STANDS}",
    ),
    "sequences: channels are places, as many as features": (
        chain(nn.Linear(4, 6), nn.BatchNorm1d(6)),
        (5, 6, 4),
        "a feature of '0' (Linear) does not stay in one channel of it",
    ),
    "maps flattened: every place has its own statistics": (
        chain(nn.Conv2d(4, 3, 2), nn.Flatten(), nn.BatchNorm1d(12)),
        (5, 4, 3, 3),
        "a feature of '0' (Conv2d) does not stay in one channel of it",
    ),
    "vectors that become maps: a conv would read several channels as one": (
        chain(nn.BatchNorm1d(12), nn.Unflatten(1, (3, 4)), nn.Conv1d(3, 2, 1)),
        (5, 12),
        "after it: a feature that '2' (Conv1d) reads does not come from one channel of it",
    ),
    "zeros of padding have no shift": (
        chain(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1)),
        (2, 4, 5, 5),
        "after it: '1' (Conv2d) pads with zeros or does not reach all places alike",
    ),
    "a transposed conv after it": (
        chain(nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 6, 3)),
        (2, 4, 5, 5),
        "'1' (ConvTranspose2d) pads with zeros or does not reach all places alike",
    ),
    "the layer is called twice": (
        randomised(Twice("fc", "norm", "relu", "fc")),
        (5, 4),
        "before it: 'fc' (Linear) is called 2 times in one forward",
    ),
    "the batch norm is called twice, once behind an activation": (
        randomised(Twice("fc", "norm", "other", "relu", "norm")),
        (5, 4),
        f"before it: at call 2: relu() {STANDS}; after it: called 2 times in one forward",
    ),
    "tied weights": (
        tied(),
        (5, 4),
        "before it: the parameters of 'fc' (Linear) are shared with 'other'",
    ),
    "the weight is read by a function": (
        reads_weight(),
        (5, 4),
        "before it: the parameters of 'fc' (Linear) are read by linear(), too",
    ),
    "read by a second one": (
        randomised(Read(lambda x, _view, y: x + y)),
        (5, 4),
        "before it: what 'fc' (Linear) makes is read by view() and by 'norm' (BatchNorm1d)",
    ),
    "leaves the model": (
        randomised(Read(lambda x, _view, y: (x, y))),
        (5, 4),
        "before it: what 'fc' (Linear) makes leaves the model",
    ),
    "written into afterwards": (
        randomised(Read(lambda x, _view, y: y + x.mul_(2))),
        (5, 4),
        "is read by",
    ),
    "hooks on the layer": (
        hooked(0),
        (5, 4),
        "before it: '0' (Linear) stays as it is: hooks are registered on it",
    ),
    "hooks on the batch norm": (hooked(1), (5, 4), "hooks are registered on it"),
    "computed weights": (
        parametrised(),
        (5, 4),
        "stays as it is: its weight or bias is computed (weight norm",
    ),
    "a layer with a forward of its own": (
        chain(OwnLinear(4, 3), nn.BatchNorm1d(3)),
        (5, 4),
        "before it: '0' (OwnLinear) stays as it is: its class has a forward of its own",
    ),
    "an input of the model": (
        chain(nn.BatchNorm1d(4), nn.ReLU()),
        (5, 4),
        f"before it: it reads an input of the model; after it: '1' (ReLU) {STANDS}",
    ),
    "not called": (
        randomised(Twice("fc", "other")),
        (5, 4),
        "not called on this example in eval mode",
    ),
}


@pytest.mark.parametrize(("model", "shape", "why"), ALONE.values(), ids=ALONE)
def test_a_batch_norm_is_left_alone_for_its_reason(model, shape, why):
    plan = plan_folding(model, random(*shape))
    assert plan.edits == ()
    assert all(why in left.why for left in plan.left_alone if left.layer != "second")


def test_an_image_without_a_batch_axis_is_followed_to_its_batch_norm():
    model = chain(nn.Conv2d(4, 3, 2), lambda x: x.unsqueeze(0), nn.BatchNorm2d(3))
    folded = plan_folding(model, random(4, 5, 5)).apply(model)
    x = random(4, 6, 7)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padding", [0, 1])
def test_an_own_batch_norm_of_the_input_goes_into_its_layer_unless_that_pads(padding):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=padding)

        def forward(self, x):
            return self.b(torch.relu(self.a(x)))

    x = random(2, 4, 5, 5)
    model = randomised(add(Net(), x, placement="after_activation"))
    plan = plan_folding(model, x)
    if padding:
        (left,) = plan.left_alone
        assert "after it: 'b' (NormalizedConv2d) pads with zeros" in left.why
    else:
        (edit,) = plan.edits
        assert edit.why == "it normalises the layer's own input"
        assert type(plan.apply(model).b) is nn.Conv2d


def test_an_own_batch_norm_of_an_activation_goes_into_the_next_layer():
    plain = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    x = random(5, 6, 4)
    model = randomised(add(plain, x, placement="after_activation"))
    plan = plan_folding(model, x)
    (edit,) = plan.edits
    assert (edit.layer, edit.structure["target"]) == ("1.batchnorm", "2")
    folded = plan.apply(model)
    assert [type(m) for m in folded] == [nn.Linear, nn.ReLU, nn.Linear]
    torch.testing.assert_close(folded(x), model(x), rtol=1e-5, atol=1e-5)


def test_an_own_batch_norm_that_stays_is_in_the_way_of_others():
    plain = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    inner = add(plain, random(5, 4))
    inner[0].register_forward_hook(lambda *_: None)
    model = randomised(nn.Sequential(*inner).insert(1, nn.BatchNorm1d(3)))
    reasons = {left.layer: left.why for left in plan_folding(model, random(5, 4)).left_alone}
    assert "hooks are registered on it" in reasons["0.batchnorm"]
    assert "the batch norm of '0' (NormalizedLinear) stands between" in reasons["1"]
