"""Random small networks. The oracle carries, with each value, the layers that reach it: forward,
where bnkit searches backwards from the layer through a recorded graph.
"""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bnkit import SurgeryError, add
from bnkit.surgery import plan_addition
from zoo.by_hand import normalised_by_hooks
from zoo.checks import call

# All values have shape (4, 4, 3, 3).
LAYERS = {
    "conv": lambda: nn.Conv2d(4, 4, 3, padding=1),
    "grouped": lambda: nn.Conv2d(4, 4, 1, groups=2, bias=False),
    "transposed": lambda: nn.ConvTranspose2d(4, 4, 1),
    "dense": lambda: nn.Linear(3, 3),
}
ACTIVATIONS = {
    "module": nn.ReLU(),
    "function": F.gelu,
    "method": lambda x: x.relu(),
    "clamp": lambda x: x.clamp(min=0),
    "answer": torch.sigmoid,
    "answering module": nn.Softmax(1),
}
ACTIVATIONS_IN_PLACE = {"relu_": lambda x: x.relu_(), "module in place": nn.ReLU(inplace=True)}
PASSAGES = {
    "pool": lambda x: F.max_pool2d(x, 3, 1, 1),
    "shift": lambda x: x + 1,
    "scale": lambda x: 0.5 * x,
    "turn": lambda x: x.flip(1).transpose(2, 3).contiguous(),
    "dropout": nn.Dropout(0.0),
    "wide": lambda x: torch.cat([x, x], 1).chunk(2, 1)[1] * 1.0,
}
VIEWS = {
    "view": lambda x: x.view(4, -1).view(4, 4, 3, 3),
    "slice": lambda x: x[:, :],
    "nothing": lambda x: x.contiguous(),
}
OTHERS = {"power": lambda x: (x - 0.1) ** 2, "bend": torch.sin}
NORMS = {
    "batch norm": lambda: nn.BatchNorm2d(4),
    "group norm": lambda: nn.GroupNorm(2, 4),
}
KINDS = {
    "layer": LAYERS,
    "again": [None],
    "activation": ACTIVATIONS,
    "activation in place": ACTIVATIONS_IN_PLACE,
    "passage": PASSAGES,
    "view": VIEWS,
    "sum": [None],
    "sum in place": [None],
    "norm": NORMS,
    "other": OTHERS,
}


@dataclass(frozen=True)
class Step:
    """What is done, in which spelling, to which values (how many steps back)."""

    kind: str
    spelling: str | None
    first: int
    second: int


SPELLINGS = [(kind, spelling) for kind, spellings in KINDS.items() for spelling in spellings]
OFTEN = [(kind, spelling) for kind, spelling in SPELLINGS if kind in {"layer", "activation"}]
BACK = st.sampled_from([0, 0, 0, 1, 1, 2, 3, 5])  # chains, with leaps
STEPS = st.lists(
    st.builds(
        lambda pair, first, second: Step(*pair, first, second),
        st.sampled_from([*SPELLINGS, *OFTEN, *OFTEN]),
        BACK,
        BACK,
    ),
    min_size=4,
    max_size=14,
)


def back(values, steps):
    """Return the value so many steps back from the last."""
    return values[-1 - steps % len(values)]


class Random(nn.Module):
    """Runs the steps on its input, and returns some of the values."""

    def __init__(self, steps, returned):
        super().__init__()
        self.steps, self.returned = steps, returned
        self.parts = nn.ModuleDict()
        for number, step in enumerate(steps):
            if step.kind in {"layer", "norm"}:
                self.parts[str(number)] = KINDS[step.kind][step.spelling]()

    def forward(self, x):
        values = [x.clone()]
        for number, step in enumerate(self.steps):
            values.append(self.made(number, step, values))
        return [back(values, steps) for steps in self.returned]

    def made(self, number, step, values):
        x, y = back(values, step.first), back(values, step.second)
        match step.kind:
            case "layer" | "norm":
                return self.parts[str(number)](x)
            case "again":
                layer = earlier_layer(self.steps, number, step)
                return x + 0 if layer is None else self.parts[str(layer)](x)
            case "sum":
                return x + y
            case "sum in place":
                x += y.clone()
                return x
        return KINDS[step.kind][step.spelling](x)


def earlier_layer(steps, number, step):
    """Return the number of the layer that this step calls again, if there is one."""
    layers = [n for n, other in enumerate(steps[:number]) if other.kind == "layer"]
    return layers[step.second % len(layers)] if layers else None


@dataclass(frozen=True)
class Reached:
    """The layers whose output reaches a value by passages: raw, activated, or as an answer.

    Values with the same `memory` are views of each other.
    """

    raw: frozenset = frozenset()
    activated: frozenset = frozenset()
    answered: frozenset = frozenset()
    memory: int = -1

    def __or__(self, other):
        return Reached(
            self.raw | other.raw, self.activated | other.activated, self.answered | other.answered
        )


def expected_layers(steps, returned):
    """Return the layers that must be normalised."""
    values, facts = [Reached()], {"calls": [], "lit": set(), "normal": set(), "left": set()}
    for number, step in enumerate(steps):
        x, y = back(values, step.first), back(values, step.second)
        made = reached(number, step, x, y, steps, facts)
        if step.kind in {"activation in place", "sum in place"}:
            made = replace(made, memory=x.memory)
            values = [made if value.memory == x.memory else value for value in values]
        elif step.kind == "view":
            made = x
        else:
            made = replace(made, memory=number)
        values.append(made)
    for value in (back(values, index) for index in returned):
        facts["left"] |= value.raw | value.answered
    once = {layer for layer in facts["calls"] if facts["calls"].count(layer) == 1}
    return {str(n) for n in (once & facts["lit"]) - facts["normal"] - facts["left"]}


def reached(number, step, x, y, steps, facts):
    """Return what reaches the value that the step makes, and note what becomes of its inputs."""
    made = Reached()
    match step.kind:
        case "layer" | "again":
            layer = number if step.kind == "layer" else earlier_layer(steps, number, step)
            facts["calls"] += [] if layer is None else [layer]
            made = x if layer is None else Reached(raw=frozenset([layer]))
        case "activation" | "activation in place":
            facts["lit"] |= x.raw
            answers = x.raw if step.spelling.startswith("answer") else frozenset()
            made = Reached(activated=x.raw, answered=answers)
        case "norm":
            facts["normal"] |= x.raw
            facts["normal"] |= x.activated if step.spelling == "batch norm" else set()
        case "passage" | "view":
            made = x
        case "sum" | "sum in place":
            made = x | y
    return made


@settings(max_examples=200, deadline=None, derandomize=True)
@given(STEPS, st.lists(BACK, min_size=1, max_size=2))
def test_random_networks_are_normalised_where_they_must_be(steps, returned):
    torch.manual_seed(0)
    model = Random(steps, returned).double()
    x = torch.randn(4, 4, 3, 3, dtype=torch.float64)
    expected = {f"parts.{layer}" for layer in expected_layers(steps, returned)}
    assert {edit.layer for edit in plan_addition(model, x).edits} == expected
    if not expected:
        with pytest.raises(SurgeryError, match="nothing in this model"):
            add(model, x)
        return
    twin, by_hand = add(model, x), normalised_by_hooks(model, expected, "before_activation")
    torch.testing.assert_close(call(twin, x), call(by_hand, x), rtol=1e-7, atol=1e-7)
