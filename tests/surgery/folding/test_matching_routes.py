import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnkit.dataflow import trace
from bnkit.surgery.folding.matching import (
    Routes,
    followed,
    one_end_each,
    one_start_each,
    spread,
)


class Chain(nn.Module):
    """A dense layer, a function, and a layer that looks at what comes out."""

    def __init__(self, function, features=6):
        super().__init__()
        self.layer, self.function = nn.Linear(4, features), function
        self.end = nn.Identity()

    def forward(self, x):
        return self.end(self.function(self.layer(x)))


def route_to_the_end(function, example):
    flow = trace(Chain(function), example)
    (end,) = flow.calls_of("end")
    found = Routes(flow, frozenset()).before(end.inputs[0])
    return flow, found if isinstance(found, str) else found[0]


def followed_to_the_end(flow, route, features):
    return followed(flow, route.layer.outputs[0], route.passages, features)


MOVES = {
    "view": lambda x: x.view(2, 3, 3, 2),
    "view_as": lambda x: x.view_as(torch.empty(3, 2, 6)),
    "reshape, by keyword": lambda x: torch.reshape(input=x, shape=(-1, 6)),
    "flatten": lambda x: x.flatten(1),
    "unflatten": lambda x: x.unflatten(-1, (2, 3)),
    "squeeze and unsqueeze": lambda x: x.unsqueeze(0).squeeze(0),
    "transpose": lambda x: x.transpose(1, 2),
    "torch.permute": lambda x: torch.permute(x, (2, 0, 1)),
    "permute": lambda x: x.permute(2, 0, 1),
    "movedim": lambda x: x.movedim(-1, 1),
    "mT": lambda x: x.mT,
    "contiguous": lambda x: x.mT.contiguous(),
    "slice": lambda x: x[:, 1:, ::2],
    "ellipsis": lambda x: x[..., 0, :],
    "select": lambda x: x.select(1, 1),
    "narrow": lambda x: x.narrow(2, 1, 3),
    "view of what is no longer in order": lambda x: x.permute(1, 0, 2).contiguous().view(6, 6),
    "module": nn.Sequential(nn.Flatten(), nn.Unflatten(1, (3, 6)), nn.Identity()),
    "dropouts": nn.Sequential(nn.Dropout(), nn.Dropout1d(), nn.AlphaDropout()),
    "functional dropout": lambda x: F.dropout(x, 0.5, False).mT,
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_features_are_followed_as_the_values_move(move):
    flow, route = route_to_the_end(move, torch.randn(2, 3, 4))
    start = spread((2, 3, 6), axis=2)
    expected = move.eval()(start.double()) if isinstance(move, nn.Module) else move(start)
    assert torch.equal(followed_to_the_end(flow, route, start), expected.long())


OBSTACLES = {
    "activation": (torch.relu, "relu() stands between"),
    "scale": (lambda x: x * 2, "stands between"),
    "dropout that drops": (F.dropout, "dropout() stands between"),
    "cast": (lambda x: x.double(), "double() stands between"),
    "view as another dtype": (lambda x: x.view(torch.int32), None),
    "in place": (lambda x: x.mul_(2), "mul_() stands between"),
    "several": (lambda x: x.chunk(2)[0], "makes more than one tensor"),
    "also read": (
        lambda x: x.mT + x.sum(),
        "input 1 of add(): what 'layer' (Linear) makes is read by mT() and by sum()",
    ),
    "a sum with a number": (lambda x: x + 1.0, "input 2 of add(): no layer makes it"),
    "a concatenation with zeros": (
        lambda x: torch.cat([x, torch.zeros(2, 3, 1)], 2),
        "input 2 of cat(): zeros() stands between it and a weight layer",
    ),
    "by an index in a tensor": (lambda x: x[:, torch.tensor([0, 1])], None),
}


@pytest.mark.parametrize(("function", "reason"), OBSTACLES.values(), ids=OBSTACLES)
def test_what_does_more_than_moving_stands_in_the_way(function, reason):
    flow, route = route_to_the_end(function, torch.randn(2, 3, 4))
    if reason is None:
        start = spread((2, 3, 6), 2)
        assert isinstance(route, str) or followed_to_the_end(flow, route, start) is None
    else:
        assert reason in route


class OwnIdentity(nn.Identity):
    """May do anything."""


def test_modules_with_hooks_or_of_other_classes_stand_in_the_way():
    hooked = nn.Identity()
    hooked.register_forward_hook(lambda *_: None)
    patched = nn.Identity()
    patched.forward = torch.relu
    for module in (hooked, patched, OwnIdentity()):
        _, route = route_to_the_end(module, torch.randn(2, 4))
        assert "stands between it and a weight layer" in route


def test_the_way_ends_at_inputs_outputs_and_second_readers():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.end = nn.Linear(4, 4), nn.Linear(4, 4), nn.Tanh()

        def forward(self, x):
            x, y, z = self.end(x), self.a(x + 1), self.b(x + 2)
            return x, self.end(y) + y, self.end(z), z

    flow = trace(Model(), torch.randn(2, 4))
    routes = Routes(flow, frozenset())
    reasons = [routes.before(call.inputs[0]) for call in flow.calls_of("end")]
    assert reasons == [
        "the input of the model is read by 'end' (Tanh) and by add()",
        "what 'a' (Linear) makes is read by 'end' (Tanh) and by add()",
        "what 'b' (Linear) makes leaves the model",
    ]


def test_the_way_leads_on_to_the_layer_that_reads_alone():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.start, self.fc = nn.Identity(), nn.Linear(6, 2)
            self.last = nn.Identity()

        def forward(self, x):
            return self.last(self.fc(self.start(x).flatten(1)))

    flow = trace(Model(), torch.randn(2, 3, 2))
    routes = Routes(flow, frozenset())
    route = routes.after(flow.calls_of("start")[0])
    assert (str(route.layer), len(route.passages)) == ("'fc' (Linear)", 1)
    assert routes.after(flow.calls_of("fc")[0]) == "what 'last' (Identity) makes leaves the model"


def test_each_feature_has_one_end_or_none():
    moved = spread((2, 6), 1).reshape(4, 3)  # features 0, 1, 2 and 3, 4, 5 in the same columns
    assert one_end_each(moved, 6, axis=1).tolist() == [0, 1, 2, 0, 1, 2]
    assert one_end_each(spread((2, 3), 1)[:, :2], 3, axis=1).tolist() == [0, 1, -1]
    assert one_end_each(spread((2, 3), 1), 3, axis=0) is None


def test_each_index_has_one_start():
    assert (
        one_start_each(spread((2, 3, 4), 1).flatten(1), 1).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    )
    assert one_start_each(spread((2, 6), 1).reshape(4, 3), 1) is None


def test_what_is_joined_to_the_features_has_no_number():
    class Net(nn.Module):
        def forward(self, x, y):
            return torch.cat([x, y.mul(2)], dim=1).add(1)[:, None], x + y[:, :1]

    flow = trace(Net(), (torch.randn(2, 3, 4), torch.randn(2, 2, 4)))
    join, *_ = (call for call in flow.calls if call.name == "cat")
    start, other = spread((2, 3, 4), 1), torch.full((2, 2, 4), -1)
    found = followed(flow, join.inputs[0], (join,), start)
    assert torch.equal(found, torch.cat([start, other], 1))
    assert one_end_each(found, 3, axis=1).tolist() == [0, 1, 2]
    (total,) = (call for call in flow.calls if call.name == "add" and len(call.inputs) == 2)
    assert torch.equal(followed(flow, total.inputs[0], (total,), start), start)


def test_routes_begin_at_each_layer_whose_output_is_joined():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.end = *(nn.Linear(4, 4) for _ in "abc"), nn.Identity()

        def forward(self, x):
            return self.end(torch.cat([self.a(x).mT, (self.b(x) - self.c(x)).mT], dim=-1)).relu()

    flow = trace(Net(), torch.randn(2, 3, 4))
    routes = Routes(flow, frozenset()).before(flow.calls_of("end")[0].inputs[0])
    found = [(r.layer.name, [call.name for call in r.passages], r.shifts) for r in routes]
    assert found == [
        ("a", ["mT", "cat"], True),
        ("b", ["sub", "mT", "cat"], True),
        ("c", ["sub", "mT", "cat"], False),
    ]
