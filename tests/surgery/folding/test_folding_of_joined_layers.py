"""One batch norm that several layers take in: concatenated, summed, or called more than once."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bnkit.checkpoints import load, save
from bnkit.experiments.sides import without_batch_norm
from bnkit.layers import BatchNorm2d
from bnkit.layers.domains import DomainBatchNorm2d, domain
from bnkit.surgery import add
from bnkit.surgery.folding import fold, plan_folding
from surgery.folding.states import randomised

STANDS = "stands between it and a weight layer"
CAT = "the layers before it, each for what it brings into cat()"
ADD = "the layers before it, through add(): the shift goes into 'a' (Conv2d) only"
AVERAGES = "which averages or repeats the values of each channel"


def images(channels=4):
    return torch.randn(3, channels, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Convs by their names, batch norms of `features`, and a forward that uses them."""

    def __init__(self, how, features=(6,), **layers):
        super().__init__()
        self.how = how
        for name, layer in layers.items():
            self.add_module(name, layer)
        for name, count in zip(("norm", "second"), features, strict=False):
            self.add_module(name, nn.BatchNorm2d(count))

    def forward(self, x):
        return self.how(self, x)


def convs(*outputs, **options):
    names = "abcd"[: len(outputs)]
    made = (nn.Conv2d(4, count, 3, padding=1, **options) for count in outputs)
    return dict(zip(names, made, strict=True))


def plan_of(model, x=None):
    """Return the plan, once the folded model has computed what `model` does, in float64."""
    x = images() if x is None else x
    model = randomised(model)
    plan = plan_folding(model, x)
    folded, wide = plan.apply(model.double()), x.double()
    torch.testing.assert_close(folded(wide), model(wide), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(folded(wide[:1]), model(wide[:1]), rtol=1e-11, atol=1e-11)
    return plan


def targets(plan):
    return [(edit.layer, edit.structure["target"]) for edit in plan.edits]


FOLDED = {
    "by channels": (
        Net(lambda m, x: m.norm(torch.cat([m.a(x), m.b(x)], 1)), **convs(2, 4)),
        ["a", "b"],
        CAT,
    ),
    "by channels, named otherwise": (
        Net(lambda m, x: m.norm(torch.concat(tensors=(m.a(x), m.b(x)), dim=-3)), **convs(2, 4)),
        ["a", "b"],
        "the layers before it, each for what it brings into concat()",
    ),
    "by places: each takes all channels in": (
        Net(lambda m, x: m.norm(torch.cat([m.a(x), m.b(x)], dim=3)), **convs(6, 6)),
        ["a", "b"],
        CAT,
    ),
    "one layer twice, by places": (
        Net(lambda m, x: m.norm(torch.cat([(y := m.a(x)), y], 2)), **convs(6)),
        "a",
        "the layer before it, each for what it brings into cat()",
    ),
    "then mixed, pooled, cut": (
        Net(
            lambda m, x: m.norm(F.avg_pool2d(torch.cat([m.a(x), m.b(x)], 1)[:, 1:], 2)),
            **convs(3, 4),
        ),
        ["a", "b"],
        f"{CAT}, through avg_pool2d(), {AVERAGES}",
    ),
    "a sum": (
        Net(lambda m, x: m.norm(m.a(x) + m.b(x)), **convs(6, 6)),
        ["a", "b"],
        ADD,
    ),
    "a sum without biases": (
        Net(lambda m, x: m.norm(torch.add(m.a(x), m.b(x), alpha=-2)), **convs(6, 6, bias=False)),
        ["a", "b"],
        ADD,
    ),
    "a difference": (
        Net(lambda m, x: m.norm(m.a(x).sub(other=m.b(x))), **convs(6, 6)),
        ["a", "b"],
        "the layers before it, through sub(): the shift goes into 'a' (Conv2d) only",
    ),
    "a sum with what is one place": (
        Net(lambda m, x: m.norm(m.a(x).mean((2, 3), keepdim=True) + m.b(x)), **convs(6, 6)),
        ["a", "b"],
        f"{ADD}, through mean(), {AVERAGES}",
    ),
    "a sum of concatenations": (
        Net(
            lambda m, x: m.norm(torch.cat([m.a(x), m.b(x)], 1) + torch.cat([m.c(x), m.d(x)], 1)),
            **convs(2, 4, 3, 3),
        ),
        ["a", "b", "c", "d"],
        f"{CAT}, cat(), through add(): the shift goes into 'a' (Conv2d) and 'b' (Conv2d) only",
    ),
    "a batch norm called behind two layers": (
        Net(lambda m, x: m.norm(m.a(x)) * m.norm(m.b(x)), **convs(6, 6)),
        ["a", "b"],
        "the layers before it, at each of its 2 calls",
    ),
    "a layer and its batch norm, called at two scales": (
        Net(lambda m, x: m.norm(m.a(x)).mean() * m.norm(m.a(x[..., ::2])), **convs(6)),
        "a",
        "the layer before it, at each of its 2 calls",
    ),
}


@pytest.mark.parametrize(("model", "target", "why"), FOLDED.values(), ids=FOLDED)
def test_each_layer_takes_its_share_in(model, target, why):
    plan = plan_of(model)
    assert targets(plan) == [("norm", target)]
    assert plan.edits[0].why == why


def test_sums_in_place_and_of_lists_are_sums():
    def in_place(model, x):
        y = model.a(x)
        y += model.b(x)
        return model.norm(y)

    for how in (in_place, lambda m, x: m.norm(sum([m.a(x), m.b(x)]))):
        plan = plan_of(Net(how, **convs(6, 6)))
        assert targets(plan) == [("norm", ["a", "b"])]


def test_only_the_layer_that_takes_the_shift_gets_a_bias():
    model = randomised(Net(lambda m, x: m.norm(m.a(x) + m.b(x)), **convs(6, 6, bias=False)))
    plan = plan_folding(model, images())
    assert plan.edits[0].structure["unshifted"] == ["b"]
    folded = plan.apply(model)
    assert (folded.a.bias is None, folded.b.bias is None) == (False, True)
    plain = without_batch_norm(model, images())  # biases come back where the batch norm's was
    assert (plain.a.bias is None, plain.b.bias is None) == (False, True)


def test_chains_through_a_concatenation_go_from_the_layers_outwards():
    plan = plan_of(
        Net(
            lambda m, x: m.norm(torch.cat([m.second(m.a(x)), m.b(x)], 1)),
            features=(6, 2),
            **convs(2, 4),
        )
    )
    assert targets(plan) == [("second", "a"), ("norm", ["a", "b"])]


def test_an_own_batch_norm_of_a_layer_that_is_called_twice_goes_into_it():
    model = Net(lambda m, x: m.a(x).relu() + m.a(x.flip(-1)).relu(), features=(), **convs(6))
    model.a = add(nn.Sequential(model.a, nn.ReLU()), images())[0]
    plan = plan_of(model)
    assert plan.edits[0].why == "it normalises the layer's own output"
    assert type(plan.apply(model).a) is nn.Conv2d


def test_a_residual_and_an_activation_stay_at_each_call():
    model = Net(
        lambda m, x: m.norm(m.b(m.norm(m.a(x), residual=x)), residual=x),
        features=(),
        norm=BatchNorm2d(4, activation="relu"),
        **convs(4, 4),
    )
    assert targets(plan_of(model)) == [("norm.norm", ["a", "b"])]


def test_a_batch_norm_whose_calls_may_be_of_several_domains_is_left_alone():
    def each_in_its_domain(model, x):
        with domain(model, "night"):
            night = model.norm(model.b(x))
        return model.norm(model.a(x)) + night

    norm = DomainBatchNorm2d(6, domains=("day", "night"))
    plan = plan_of(Net(each_in_its_domain, features=(), norm=norm, **convs(6, 6)))
    (left,) = plan.left_alone
    assert left.why == "called 2 times in one forward, and it has several domains"


def test_a_checkpoint_of_several_layers_loads_again(tmp_path):
    def build():
        return Net(lambda m, x: m.norm(m.a(x) - m.b(x)), **convs(6, 6, bias=False)).eval()

    model = randomised(build())
    plan = plan_folding(model, images())
    save(plan.apply(model), tmp_path / "folded.pt", plan=plan)
    again = load(build(), tmp_path / "folded.pt").eval()
    torch.testing.assert_close(again(images()), model(images()), rtol=1e-5, atol=1e-5)


def tied(model):
    model.b.weight = model.a.weight
    return model


ALONE = {
    "a part that others read, as in DenseNet": (
        Net(lambda m, x: m.norm(torch.cat([(y := m.a(x)), m.b(x)], 1)) + y.mean(), **convs(2, 4)),
        "before it: input 1 of cat(): what 'a' (Conv2d) makes is read by cat() and by mean()",
    ),
    "a part that is an input of the model": (
        Net(lambda m, x: m.norm(torch.cat([m.a(x), x], 1)), **convs(2)),
        "before it: input 2 of cat(): the input of the model is read by 'a' (Conv2d) and by cat()",
    ),
    "a part behind an activation": (
        Net(lambda m, x: m.norm(torch.cat([m.a(x), m.b(x).relu()], 1)), **convs(2, 4)),
        f"before it: input 2 of cat(): relu() {STANDS}",
    ),
    "a part in a part": (
        Net(lambda m, x: m.norm(torch.cat([m.a(x) + m.b(x).tanh(), m.c(x)], 1)), **convs(2, 2, 4)),
        f"before it: input 1 of cat(): input 2 of add(): tanh() {STANDS}",
    ),
    "one layer twice, by channels": (
        Net(lambda m, x: m.norm(torch.cat([(y := m.a(x)), y], 1)), **convs(3)),
        "before it: a feature of 'a' (Conv2d) does not stay in one channel of it",
    ),
    "a number in the sum": (
        Net(lambda m, x: m.norm(m.a(x) + 2), **convs(6)),
        "before it: input 2 of add(): no layer makes it",
    ),
    "one layer twice in the sum": (
        Net(lambda m, x: m.norm((y := m.a(x)) + y), **convs(6)),
        "before it: 'a' (Conv2d) would have to take in two maps of it",
    ),
    "one layer of all channels in the sum": (
        Net(lambda m, x: m.norm(m.a(x) + m.b(x)), **convs(6, 1)),
        "before it: a feature of 'b' (Conv2d) does not stay in one channel of it",
    ),
    "a layer called once without the batch norm": (
        Net(lambda m, x: m.norm(m.a(x)) * m.norm(m.a(x * 2)) + m.a(x * 3), **convs(6)),
        "before it: 'a' (Conv2d) is called 3 times in one forward",
    ),
    "one call behind no layer": (
        Net(lambda m, x: m.norm(m.a(x)).mean() * m.norm(x.repeat(1, 2, 1, 1)[:, :6]), **convs(6)),
        "before it: at call 2: repeat() " + STANDS,
    ),
    "called twice in a row": (
        Net(lambda m, x: m.norm(m.norm(m.a(x))), **convs(6)),
        f"before it: at call 2: 'norm' (BatchNorm2d) {STANDS}",
    ),
    "tied weights": (
        tied(Net(lambda m, x: m.norm(m.a(x) + m.b(x)), **convs(6, 6))),
        "before it: the parameters of 'a' (Conv2d) are shared with 'b'",
    ),
}


@pytest.mark.parametrize(("model", "why"), ALONE.values(), ids=ALONE)
def test_a_batch_norm_that_not_all_layers_can_take_in_is_left_alone(model, why):
    plan = plan_of(model)
    assert plan.edits == ()
    assert plan.left_alone[0].why.startswith(why)


KINDS = {1: (nn.Conv1d, nn.BatchNorm1d), 2: (nn.Conv2d, nn.BatchNorm2d)}


@st.composite
def joins(draw):
    """Draw a batch norm behind several convs, of any groups, with biases or without, and input."""
    rank, how = draw(st.sampled_from([1, 2])), draw(st.sampled_from("cat places sum calls".split()))
    conv, norm = KINDS[rank]
    counts = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    counts = counts if how == "cat" else counts[:1] * len(counts)
    groups = draw(st.lists(st.sampled_from([1, 2]), min_size=4, max_size=4))
    biases = draw(st.lists(st.booleans(), min_size=4, max_size=4))
    layers = [
        conv(4, 2 * count, 3, padding=1, groups=group, bias=bias)
        for count, group, bias in zip(counts, groups, biases, strict=False)
    ]
    features = 2 * (sum(counts) if how == "cat" else counts[0])
    model = Joined(layers, norm(features, affine=draw(st.booleans())), how)
    return randomised(model).double(), torch.randn(2, 4, *[5] * rank, dtype=torch.float64)


class Joined(nn.Module):
    def __init__(self, layers, norm, how):
        super().__init__()
        self.layers, self.norm, self.how = nn.ModuleList(layers), norm, how

    def forward(self, x):
        made = [layer(x) for layer in self.layers]
        if self.how == "calls":
            return torch.cat([self.norm(y) for y in made])
        joined = sum(made) if self.how == "sum" else torch.cat(made, 1 if self.how == "cat" else 2)
        return self.norm(joined)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(joins())
def test_the_function_stays_for_any_sizes(drawn):
    model, x = drawn
    folded = fold(model, x)
    assert isinstance(folded.norm, nn.Identity)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-11, atol=1e-11)
