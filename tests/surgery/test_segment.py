import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bnkit
from bnkit.dataflow import trace
from bnkit.roles import Role
from bnkit.surgery.segment import next_weights, role_of, segment_after
from zoo.catalogue import Net, conv, dense, images


class Following(Net):
    """A conv, then what the function does with it; with other parts for the function to use."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def parts(self):
        return {
            "start": conv(),
            "act": nn.ReLU(),
            "next": conv(),
            "fc": dense(),
            "norm": nn.BatchNorm2d(4),
            "group": nn.GroupNorm(1, 4),
            "lstm": nn.LSTM(6, 2),
            "bilinear": nn.Bilinear(6, 6, 2),
        }

    def forward(self, x):
        return self.function(self, self.start(x))


def follow(function, x=None):
    flow = trace(Following(function), images() if x is None else x)
    return flow, flow.calls_of("start")[0]


def stretch_of(function):
    flow, start = follow(function)
    return segment_after(flow, start)


def names(calls):
    return [call.name for call in calls]


def test_a_stretch_holds_what_a_value_meets_nearest_first():
    def forward(self, y):
        z = self.next(F.max_pool2d(y, 2).tanh())
        return z, self.norm(y), self.lstm(y.mean(1)), y.flatten(1).relu(), y.abs()

    segment = stretch_of(forward)
    assert names(segment.activations) == ["tanh", "relu"]
    assert names(segment.normalisations) == ["norm"]
    assert names(segment.others) == ["abs", "lstm"]
    assert not segment.leaves


def test_a_stretch_ends_at_activations_weights_normalisations_and_other_operations():
    def forward(self, y):
        return [self.act(y).tanh(), self.next(y).tanh(), self.group(y).tanh(), y.exp().tanh()]

    segment = stretch_of(forward)
    assert names(segment.activations) == ["act"]


def test_a_call_that_is_reached_twice_is_met_once():
    segment = stretch_of(lambda _, y: torch.relu(y + y.flip(0)).sum())
    assert names(segment.activations) == ["relu"]


LEAVES = {
    "itself": lambda _, y: y,
    "through a passage": lambda _, y: y.mean((2, 3)) + 1,
    "beside an activation": lambda _, y: (y, y.relu()),
    "through an answer": lambda _, y: y.sigmoid(),
    "through an answer and passages": lambda _, y: torch.cat([2 * y.tanh() - 1, y.softmax(1)]),
    "as numbers": lambda _, y: y.softmax(1).tolist(),
}
STAYS = {
    "through a rectifier": lambda _, y: y.relu(),
    "an answer that a layer reads": lambda self, y: self.next(y.sigmoid()),
    "an answer that gates": lambda _, y: y.sigmoid() * torch.ones_like(y).cumsum(0),
    "only the place of the largest": lambda _, y: y.argmax(1),
}


@pytest.mark.parametrize("function", LEAVES.values(), ids=LEAVES)
def test_results_that_leave_the_model(function):
    assert stretch_of(function).leaves


@pytest.mark.parametrize("function", STAYS.values(), ids=STAYS)
def test_results_that_stay_in_it(function):
    assert not stretch_of(function).leaves


BATCH_NORMS = {
    "a module": lambda self, y: self.norm(y.relu()),
    "through passages": lambda self, y: self.norm(F.max_pool2d(y.relu() + 1, 2)),
    "a function": lambda _, y: F.batch_norm(y.relu(), None, None, training=True),
    "bnkit's function": lambda _, y: bnkit.functional.batch_norm(
        y.relu(), None, None, training=True
    ),
}


@pytest.mark.parametrize("function", BATCH_NORMS.values(), ids=BATCH_NORMS)
def test_batch_norms_after_the_activation_count(function):
    assert len(stretch_of(function).normalisations) == 1


OTHER_NORMS = {
    "another normalisation": lambda self, y: self.group(y.relu()),
    "to length one": lambda _, y: F.normalize(y.relu()),
    "after the next layer": lambda self, y: self.norm(self.next(y.relu())),
}


@pytest.mark.parametrize("function", OTHER_NORMS.values(), ids=OTHER_NORMS)
def test_others_after_the_activation_do_not(function):
    assert stretch_of(function).normalisations == []


AXES = {
    "nothing": (lambda _, y: y.relu(), True),
    "pooling and dropout": (lambda _, y: F.dropout(F.max_pool2d(y, 2)).relu(), True),
    "sum": (lambda _, y: (y + 1).relu(), True),
    "concatenation": (lambda _, y: torch.cat([y, y], 1).relu(), True),
    "chunks": (lambda _, y: y.chunk(2, 1)[0].relu(), True),
    "permutation": (lambda _, y: y.permute(0, 2, 3, 1).relu(), False),
    "attribute": (lambda _, y: y.mT.relu(), False),
    "view": (lambda _, y: y.view(4, 4, 36).relu(), False),
    "module": (lambda _, y: nn.Flatten(2)(y).relu(), False),
    "after a passage": (lambda _, y: (y.transpose(1, 2) + 1).relu(), False),
}


@pytest.mark.parametrize(("function", "kept"), AXES.values(), ids=AXES)
def test_whether_features_stay_on_their_axis(function, kept):
    segment = stretch_of(function)
    assert [segment.keeps_axes[call.index] for call in segment.activations] == [kept]


def read_twice(self, y):
    z = y.relu()
    return self.next(z) + z


def read_and_returned(self, y):
    z = y.relu()
    return self.next(z), z


NEXT = {
    "the next layer": (lambda self, y: self.next(y.relu()), "next"),
    "by keyword": (lambda self, y: self.next(input=y.relu()), "next"),
    "through passages": (lambda self, y: self.fc(y.relu().mean((2, 3)).flip(0)), "fc"),
    "a recurrent layer": (lambda self, y: self.lstm(y.relu().mean(1))[0], "lstm"),
    "a function": (lambda _, y: F.linear(y.relu(), torch.ones(2, 6)), None),
    "what was before is read too": (lambda self, y: self.next(y.relu()) + y, "next"),
    "two readers": (read_twice, None),
    "a sum of two": (lambda self, y: self.next(y.relu() + y), None),
    "another argument": (lambda self, y: self.bilinear(y[0, 0], y.relu()[0, 0]), None),
    "the output": (lambda _, y: y.relu(), None),
    "the output too": (read_and_returned, None),
    "an operation": (lambda self, y: self.next(y.relu().exp()), None),
    "another activation": (lambda self, y: self.next(y.relu().tanh()), None),
    "a normalisation": (lambda self, y: self.next(self.group(y.relu())), None),
}


@pytest.mark.parametrize(("function", "expected"), NEXT.values(), ids=NEXT)
def test_the_one_layer_that_reads_an_activation(function, expected):
    flow, _ = follow(function)
    (relu,) = [call for call in flow.calls if call.name == "relu"]
    found = next_weights(flow, relu)
    assert (None if found is None or found.module is None else found.name) == expected


def test_roles_of_modules_and_functions():
    def forward(self, y):
        return self.next(self.act(y) * 2).view(-1).exp()

    flow, _ = follow(forward)
    roles = [role_of(call) for call in flow.calls]
    assert roles == [
        Role.WEIGHTS,
        Role.ACTIVATION,
        Role.PASSTHROUGH,
        Role.WEIGHTS,
        Role.PASSTHROUGH,
        Role.OTHER,
    ]
