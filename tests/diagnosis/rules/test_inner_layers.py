"""What a layer inside gets, which the mini-batch does not say: few values, another axis."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnkit.diagnosis.diagnosing import diagnose
from bnkit.diagnosis.gathering import gather
from bnkit.diagnosis.rules.table import RULES
from bnkit.layers.masked import MaskedBatchNorm1d
from cases import seeded

CHECKS = {rule.slug: rule.check for rule in RULES}


def found_by(rule, model, batches):
    torch.manual_seed(0)
    return list(CHECKS[rule](gather(model, batches)))


def branch(norm=None):
    return nn.Sequential(nn.Linear(5, 8), norm or nn.BatchNorm1d(8), nn.ReLU())


class NodeTypes(nn.Module):
    """Nodes of two types, as a heterogeneous graph has them."""

    def __init__(self, norm=None):
        super().__init__()
        self.paper, self.author, self.out = branch(), branch(norm), nn.Linear(8, 2)

    def forward(self, paper, author):
        return self.out(self.paper(paper).mean(0) + self.author(author).mean(0))


class Voxels(nn.Module):
    """Only those points are normalised that are occupied."""

    def __init__(self):
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(5), nn.Linear(5, 2)

    def forward(self, points):
        chosen = points[points[:, 0] > 0]
        return self.out(self.norm(chosen)).sum(0)


class Proposals(nn.Module):
    """A head on boxes that are cut out of a map, pooled to one place, in a function."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, padding=1)
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("variance", torch.ones(8))

    def forward(self, images, boxes=None):
        maps = self.body(images)
        cut = torch.stack([maps[0, :, : int(x), : int(x)].mean((1, 2)) for x in boxes])
        return F.batch_norm(cut, self.mean, self.variance, training=self.training)


def nodes(*numbers):
    generator = seeded(0)
    return [
        {
            "paper": torch.randn(30, 5, generator=generator),
            "author": torch.randn(number, 5, generator=generator),
        }
        for number in numbers
    ]


def points(*numbers):
    generator = seeded(0)
    batches = []
    for number in numbers:
        points = torch.randn(32, 5, generator=generator)
        points[:, 0] = torch.where(torch.arange(32) < number, 1.0, -1.0)
        batches.append(points)
    return batches


def boxes(*numbers):
    images = torch.randn(2, 3, 8, 8, generator=seeded(0))
    return [{"images": images, "boxes": torch.full((number,), 4.0)} for number in numbers]


INNER = [
    (NodeTypes, nodes, "author.1"),
    (Voxels, points, "norm"),
    (Proposals, boxes, ""),
]
IDS = ["node types", "voxels", "proposals of a function"]


@pytest.mark.parametrize(("build", "batches", "path"), INNER, ids=IDS)
@pytest.mark.parametrize("at", [1, 3])
def test_one_value_of_an_inner_layer_is_an_error_with_layer_and_mini_batch(
    build, batches, path, at
):
    numbers = [12, 18, 16, 14]
    numbers[at - 1] = 1
    (finding,) = found_by("one-value-per-channel", build(), batches(*numbers))
    assert (finding.severity, finding.layers) == ("error", (path,))
    assert finding.measured == {"mini-batch": at, "values per channel": 1}
    diagnosis = diagnose(build(), batches(*numbers), progress=False)
    assert diagnosis.worst == "error"
    if at > 1:  # the first one is the example, on which the run says more
        # the functional batch norm, which no rule reads, is named there, too
        assert len([why for why in diagnosis.not_run if f"mini-batch {at} in" in why]) == 1


@pytest.mark.parametrize(("build", "batches"), [each[:2] for each in INNER], ids=IDS)
def test_enough_values_of_an_inner_layer_are_no_finding(build, batches):
    assert found_by("one-value-per-channel", build(), batches(12, 18, 8, 16)) == []
    assert found_by("fails-in-training", build(), batches(12, 18, 8, 16)) == []


def test_in_eval_mode_one_value_is_information():
    (finding,) = found_by("one-value-per-channel", NodeTypes().eval(), nodes(12, 1))
    assert finding.severity == "info"


def test_a_masked_layer_counts_what_its_mask_leaves():
    model = nn.Sequential(nn.Linear(5, 8), MaskedBatchNorm1d(8))
    assert found_by("one-value-per-channel", model.eval(), [torch.ones(1, 5)]) == []


def test_a_small_share_of_an_inner_layer_is_noise_in_that_mini_batch():
    (finding,) = found_by("noisy-statistics", NodeTypes(), nodes(120, 180, 2, 160))
    assert finding.layers == ("author.1",)
    assert finding.measured["mini-batch"] == 3
    assert finding.measured["effective values per channel"] == pytest.approx(2)


class Refuses(nn.Module):
    """A part that cannot take some mini-batches, and no batch norm."""

    def __init__(self, bar):
        super().__init__()
        self.bar, self.body = bar, branch()

    def forward(self, x):
        if self.training and len(x) < self.bar:
            raise RuntimeError("too few to sort")
        return self.body(x)


def test_a_mini_batch_on_which_training_alone_fails_is_an_error():
    batches = [torch.randn(rows, 5, generator=seeded(rows)) for rows in (16, 5, 16, 4)]
    model = nn.Sequential(branch()[0], nn.Linear(8, 5), Refuses(6))
    (finding,) = found_by("fails-in-training", model, batches)
    assert (finding.severity, finding.layers) == ("error", ("2",))
    assert finding.measured == {"mini-batch": 2, "mini-batches that fail": 2, "of": 4}
    assert "too few to sort" in finding.why


def test_a_model_that_fails_in_training_on_all_mini_batches_lacks_something_else():
    batches = [torch.randn(5, 5, generator=seeded(0))] * 3
    diagnosis = diagnose(Refuses(6), batches, progress=False)
    assert "fails-in-training" not in [finding.rule for finding in diagnosis.findings]
    (why,) = diagnosis.not_run
    assert why == (
        "in training mode, the model fails on `example` of shape (5, 5) in its own forward: "
        "RuntimeError: too few to sort"
    )


# The axis of the features


class Sequences(nn.Module):
    """Sequences (N, T, F), features last, whose steps are normalised by what is given."""

    def __init__(self, source, norm, *between):
        super().__init__()
        self.source, self.norm = source, norm
        self.between = nn.Sequential(*between)

    def forward(self, x):
        made = self.source(x)
        made = made[0] if isinstance(made, tuple) else made
        return self.norm(self.between(made)).mean(1)


class Summed(nn.Module):
    """Features and positions, summed, as at the start of a transformer."""

    def __init__(self):
        super().__init__()
        self.fc, self.positions = nn.Linear(6, 8), nn.Parameter(torch.randn(10, 8))

    def forward(self, x):
        return self.fc(x) + self.positions


class Swapped(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.transpose(1, 2)).transpose(1, 2)


class OverFlatSteps(nn.BatchNorm1d):
    def forward(self, input):
        return super().forward(input.flatten(0, 1)).view_as(input)


class ByFunction(nn.Module):
    def forward(self, x):
        mean, variance = x.new_zeros(10), x.new_ones(10)
        return F.batch_norm(x, mean, variance, training=self.training)


class Flat(nn.Module):
    """Each feature of each step is a channel of its own."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(80)

    def forward(self, x):
        return self.norm(x.flatten(1)).view_as(x)


def sequences(*lengths, rows=16):
    generator = seeded(0)
    return [torch.randn(rows, length, 6, generator=generator) for length in lengths or (10,) * 3]


OVER_TIME = {
    "a dense layer": lambda: Sequences(nn.Linear(6, 8), nn.BatchNorm1d(10)),
    "an activation and dropout between": lambda: Sequences(
        nn.Linear(6, 8), nn.BatchNorm1d(10), nn.GELU(), nn.Dropout(0.1)
    ),
    "a recurrent layer": lambda: Sequences(nn.LSTM(6, 8, batch_first=True), nn.BatchNorm1d(10)),
    "a sum with positions": lambda: Sequences(Summed(), nn.BatchNorm1d(10)),
    "layer norm between": lambda: Sequences(nn.Linear(6, 8), nn.BatchNorm1d(10), nn.LayerNorm(8)),
    "a conv whose axes were swapped": lambda: Sequences(
        Swapped(nn.Conv1d(6, 8, 1)), nn.BatchNorm1d(10)
    ),
    "a function": lambda: Sequences(nn.Linear(6, 8), ByFunction()),
}


@pytest.mark.parametrize("build", OVER_TIME.values(), ids=OVER_TIME)
def test_a_batch_norm_over_time_is_told_with_its_axes(build):
    (finding,) = found_by("wrong-axis", build(), sequences())
    assert (finding.severity, finding.layers[0]) == ("info", "norm")
    assert finding.measured == {"channels": 10, "features": 8, "their axis": 2}
    assert "axis 1" in finding.why
    assert "axis 2" in finding.why


def test_another_length_on_which_training_fails_is_an_error():
    model = Sequences(nn.Linear(6, 8), nn.BatchNorm1d(10), nn.ReLU())
    (finding,) = found_by("wrong-axis", model, sequences(10, 10, 7))
    assert (finding.severity, finding.layers) == ("error", ("norm", "source"))
    assert finding.measured["fails on mini-batch"] == 3
    found = diagnose(model, sequences(10, 10, 7), progress=False).findings
    failing = next(each for each in found if each.rule == "fails-in-training")
    assert (failing.layers, [cause.rule for cause in failing.causes]) == (("norm",), ["wrong-axis"])


class Halves(nn.Module):
    """A conv gives several values, each with a batch norm, as the keys and values of attention."""

    def __init__(self, divide):
        super().__init__()
        self.divide = divide
        self.conv = nn.Conv1d(6, 8, 1)
        self.first, self.second = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

    def forward(self, x):
        first, second = self.divide(self.conv(x))
        return self.first(first) * self.second(second)


RIGHT = {
    "swapped": lambda: Sequences(nn.Linear(6, 8), Swapped(nn.BatchNorm1d(8))),
    "all steps in a row": lambda: Sequences(nn.Linear(6, 8), OverFlatSteps(8)),
    "steps and features": lambda: Sequences(nn.Linear(6, 8), Flat()),
    "a conv": lambda: Swapped(nn.Sequential(nn.Conv1d(6, 8, 1), nn.BatchNorm1d(8))),
    "a conv of maps": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 10)), nn.Conv2d(1, 8, 3), nn.ReLU(), nn.BatchNorm2d(8)
    ),
    "parts of a conv": lambda: Swapped(Halves(lambda y: y.chunk(2, 1))),
    "parts of a conv by their sizes": lambda: Swapped(Halves(lambda y: y.split([4, 4], 1))),
    "a vector": lambda: nn.Sequential(nn.Flatten(), nn.Linear(60, 8), nn.ReLU(), nn.BatchNorm1d(8)),
}


@pytest.mark.parametrize("build", RIGHT.values(), ids=RIGHT)
def test_features_on_their_axis_are_no_finding(build):
    assert found_by("wrong-axis", build(), sequences()) == []
