import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnkit import add
from bnkit.surgery import plan_addition
from zoo.catalogue import Net, conv, dense, images, sequences, vectors


class Chain(Net):
    """Two layers, with something between them that the function does."""

    def __init__(self, between, first=None, last=None, act=None):
        super().__init__()
        self.between, self.act = between, act or nn.ReLU()
        self.first, self.last = first or conv(), last or conv()

    def parts(self):
        return {}

    def forward(self, x):
        return self.last(self.between(self, self.first(x)))


def planned(model, example=None, placement="after_activation"):
    return plan_addition(model, images() if example is None else example, placement=placement)


def only_edit(plan):
    (edit,) = plan.edits
    return edit.layer, edit.kind, edit.action, edit.why


def reason(plan, layer="first"):
    return {left.layer: left.why for left in plan.left_alone}[layer]


# Before the activation

BEFORE = [
    (conv(4, 6), "normalise 6 features, drop bias"),
    (conv(4, 6, bias=False), "normalise 6 features"),
    (nn.ConvTranspose2d(4, 6, 3, padding=1), "normalise 6 features, drop bias"),
]


@pytest.mark.parametrize(("first", "action"), BEFORE, ids=[action for _, action in BEFORE])
def test_before_the_activation_an_edit_says_what_it_does(first, action):
    model = Chain(lambda _, y: y.relu(), first, conv(6, 2))
    edit = only_edit(planned(model, placement="before_activation"))
    assert edit == ("first", type(first).__name__, action, "relu() follows")


class Halved(nn.Linear):
    """A dense layer with a forward of its own."""

    def forward(self, x):
        return super().forward(x) / 2


class Convolved(nn.Conv2d):
    """A conv that overrides what torch's forward calls."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight, bias).abs()


@pytest.mark.parametrize("first", [Halved(6, 6), Convolved(4, 6, 1)], ids=["dense", "conv"])
def test_a_layer_with_a_forward_of_its_own_keeps_its_bias(first):
    last = dense(6, 2) if isinstance(first, nn.Linear) else conv(6, 2)
    model = Chain(lambda self, y: self.act(y), first, last)
    edit = only_edit(planned(model, placement="before_activation"))
    assert edit[2:] == ("normalise 6 features, keep bias", "'act' (ReLU) follows")
    assert torch.equal(add(model, images()).first.bias, first.bias)


# After the activation


def test_an_activation_that_is_called_once_normalises_its_output():
    plan = planned(Chain(lambda self, y: self.act(y)))
    assert only_edit(plan) == ("act", "ReLU", "normalise 4 features", "it follows 'first' (Conv2d)")
    assert [left.layer for left in plan.left_alone] == ["last"]


def test_a_function_leaves_it_to_the_input_of_the_next_layer():
    plan = planned(Chain(lambda _, y: F.max_pool2d(y.relu(), 2).flatten(1), last=dense(36, 2)))
    assert only_edit(plan) == (
        "last",
        "Linear",
        "normalise its input, 36 features",
        "it reads relu() of 'first' (Conv2d)",
    )
    assert plan.left_alone == ()  # a layer has one row


def test_an_activation_with_parameters_normalises_its_output_too():
    twin = add(
        Chain(lambda self, y: self.act(y), act=nn.PReLU(4)), images(), placement="after_activation"
    )
    assert isinstance(twin.act, nn.PReLU)
    assert twin.first.bias is not None


NOT_ALONE = "and what it makes is not read by one weight layer alone"
UNSURE = "axes move between it and 'act' (ReLU): which of them holds the features is unsure"
REFUSED = {
    "it is called twice": (
        lambda self, y: self.act(y) * self.act(-y),
        f"'act' (ReLU) is called 2 times, {NOT_ALONE}",
    ),
    "another operation reads it": (
        lambda _, y: y.relu().exp(),
        f"relu() is not a module, {NOT_ALONE}",
    ),
    "axes move before it": (
        lambda self, y: self.act(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
        UNSURE,
    ),
    "an axis is lost before it": (
        lambda self, y: self.act(y.mean(1)).unsqueeze(1).expand(-1, 4, -1, -1),
        UNSURE,
    ),
}


@pytest.mark.parametrize(("between", "why"), REFUSED.values(), ids=REFUSED)
def test_places_that_are_unsure_are_left_alone(between, why):
    plan = planned(Chain(between))
    assert plan.edits == ()
    assert reason(plan) == why


def test_the_input_of_a_layer_that_can_own_none_is_left_alone():
    model = Chain(lambda _, y: y.relu(), dense(), nn.GRU(4, 2))
    why = "relu() is not a module, and 'last' (GRU) cannot own a batch norm"
    assert reason(planned(model, sequences())) == why


def test_the_input_of_a_layer_that_must_stay_as_it_is_is_left_alone():
    class Twice(Chain):
        def forward(self, x):
            return self.last(super().forward(x))

    why = (
        "relu() is not a module, and 'last' (Conv2d) stays as it is: called 2 times in one forward:"
    )
    assert reason(planned(Twice(lambda _, y: y.relu()))).startswith(why)


def test_an_input_that_is_no_mini_batch_is_left_alone():
    model = Chain(lambda _, y: y.relu().view(4, 3, 2), dense(), nn.Conv2d(4, 2, 1))
    why = (
        "relu() is not a module, and 'last' (Conv2d) stays as it is: its input of shape (4, 3, 2) "
        "is not a mini-batch: add a batch axis to the example"
    )
    assert reason(planned(model, vectors())) == why


def test_an_activation_that_cannot_change_its_class_is_left_alone():
    act = nn.ReLU()
    act.forward = act.forward
    plan = planned(Chain(lambda self, y: self.act(y), act=act))
    assert reason(plan).startswith("'act' (ReLU) stays as it is: its forward is set on")


def test_one_activation_of_several_layers_is_one_edit():
    class Joined(Chain):
        def forward(self, x):
            return self.between(self, torch.cat([self.first(x), self.last(x)], 1))

    plan = planned(Joined(lambda self, y: self.act(y)))
    assert only_edit(plan)[:3] == ("act", "ReLU", "normalise 8 features")
    assert plan.left_alone == ()


def test_a_layer_with_one_activation_in_place_and_one_that_is_not_is_left_alone():
    plan = planned(Chain(lambda self, y: self.act(y) * y.sigmoid()))
    assert plan.edits == ()
    assert reason(plan).startswith("sigmoid() is not a module")


LAYOUTS = {
    "conv": (Chain(lambda self, y: self.act(y)), images, (1, 4, 4)),
    "conv, flattened": (
        Chain(lambda self, y: self.act(y.flatten(1)), last=dense(144, 2)), images, (1, 2, 144)
    ),
    "dense": (Chain(lambda self, y: self.act(y), dense(4, 5), dense(5, 2)), vectors, (1, 2, 5)),
    "dense on three axes": (
        Chain(lambda self, y: self.act(y), dense(4, 5), dense(5, 2)), sequences, (-1, None, 5)
    ),
}  # fmt: skip


@pytest.mark.parametrize(("model", "example", "expected"), LAYOUTS.values(), ids=LAYOUTS)
def test_where_the_features_of_an_activation_lie(model, example, expected):
    twin = add(model, example(), placement="after_activation")
    layout = twin.act.batchnorm_layout
    assert (layout.axis, layout.rank, layout.features) == expected
    assert layout.path == "act"


STRUCTURES = {
    "before": (
        conv(4, 6),
        "before_activation",
        {"layer": "first", "side": "output", "features": 6, "drop_bias": True},
    ),
    "before, without a bias": (
        conv(4, 6, bias=False),
        "before_activation",
        {"layer": "first", "side": "output", "features": 6, "drop_bias": False},
    ),
    "before, in a layer that keeps its bias": (
        Convolved(4, 6, 1),
        "before_activation",
        {"layer": "first", "side": "output", "features": 6, "drop_bias": False},
    ),
    "after": (
        conv(4, 6),
        "after_activation",
        {"layer": "act", "side": "output", "features": 6, "like": "first"},
    ),
}


@pytest.mark.parametrize(("first", "placement", "expected"), STRUCTURES.values(), ids=STRUCTURES)
def test_an_edit_says_in_plain_data_what_it_does_to_the_structure(first, placement, expected):
    (edit,) = planned(Chain(lambda self, y: self.act(y), first, conv(6, 2)), None, placement).edits
    always = {"operation": "own_batch_norm_at", "axis": 1, "rank": 4, "momentum": 0.1, "eps": 1e-5}
    assert edit.structure == always | expected


def test_an_edit_of_an_input_says_so():
    (edit,) = planned(Chain(lambda _, y: y.mean((2, 3)).relu(), last=dense(4, 2))).edits
    layout = {"side": "input", "features": 4, "axis": -1, "rank": None}
    options = {"momentum": 0.1, "eps": 1e-5}
    named = {"operation": "own_batch_norm_at", "layer": "last"}
    assert edit.structure == named | layout | options
