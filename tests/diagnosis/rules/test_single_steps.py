import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from bnkit.diagnosis.diagnosing import diagnose_export
from bnkit.diagnosis.rules.single_steps import Step, batch_norms_in_steps


def found_in(*steps):
    named = [Step(operation, tuple(reads.split()), makes) for operation, reads, makes in steps]
    found = batch_norms_in_steps(named, ["x"], lambda operation: "conv" in operation)
    return [(step.makes, feeder) for step, feeder in found]


CONV = ("conv2d", "x kernel", "a")
ROOT = [("add", "variance", "wide"), ("rsqrt_", "wide", "r"), ("mul", "r gamma", "scale")]


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        pytest.param(
            [CONV, *ROOT, ("sub", "a mean", "b"), ("mul_", "b scale", "c")],
            [("c", "conv2d")],
            id="behind a conv",
        ),
        pytest.param(
            [
                CONV,
                ("permute", "a", "a1"),
                ("_assert_tensor_metadata", "a1", ""),
                ("add", "a1 bias", "a2"),
                *ROOT,
                ("subtract", "a2 mean", "b"),
                ("to", "b", "b1"),
                ("mul", "scale b1", "c"),
            ],
            [("c", "conv2d")],
            id="with a bias, and layout between",
        ),
        pytest.param(
            [CONV, ("Sub", "a mean", "b"), ("Mul", "b scale", "c")],
            [("c", "conv2d")],
            id="with a root that was computed at the export",
        ),
        pytest.param(
            [*ROOT, ("sub", "x mean", "b"), ("mul", "b scale", "c")],
            [("c", "")],
            id="of the input",
        ),
        pytest.param(
            [CONV, *ROOT, ("sub", "a mean", "b"), ("mul", "b scale", "c"), ("relu", "a", "d")],
            [("c", "")],
            id="of what another reads, too",
        ),
        pytest.param(
            [CONV, ("add", "a x", "s"), *ROOT, ("sub", "s mean", "b"), ("mul", "b scale", "c")],
            [("c", "")],
            id="of a sum",
        ),
        pytest.param(
            [("sub", "x mean", "b"), ("mul", "b scale", "c"), ("conv2d", "c kernel", "d")],
            [],
            id="inputs that are scaled, whatever by",
        ),
        pytest.param(
            [
                CONV,
                ("mean", "a", "m"),
                ("rsqrt", "m", "r"),
                ("sub", "a m", "b"),
                ("mul", "b r", "c"),
            ],
            [],
            id="statistics of the input: a layer norm",
        ),
        pytest.param([CONV, ("add", "a bias", "b")], [], id="a bias alone"),
        pytest.param(
            [CONV, ("sub", "a mean", "b"), ("mul", "b scale", "c"), ("neg", "b", "d")],
            [],
            id="a difference that another reads, too",
        ),
    ],
)
def test_steps_are_taken_for_a_batch_norm_where_they_are_one(steps, found):
    assert found_in(*steps) == found


class ByHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.ones(4, 3, 3, 3))
        self.register_buffer("mean", torch.ones(4, 1, 1))
        self.register_buffer("variance", torch.ones(4, 1, 1))

    def forward(self, x):
        return (F.conv2d(x, self.kernel) - self.mean) * torch.rsqrt(self.variance + 1e-5)


@pytest.mark.parametrize(
    "exported",
    [lambda model: torch.export.export(model, (torch.ones(1, 3, 8, 8),)), fx.symbolic_trace],
    ids=["export", "fx"],
)
def test_a_program_of_torch_with_a_batch_norm_in_steps(exported):
    (finding,) = diagnose_export(exported(ByHand().eval())).findings
    assert finding.measured == {"batch norms": 1, "fed by": "conv2d"}
    assert "bnkit.keras.fold(model) in Keras" in finding.fix


@pytest.mark.filterwarnings("ignore:.isinstance.treespec")  # of torch's own copies of a program
def test_other_norms_and_scaled_inputs_are_none():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LayerNorm([4, 6, 6]), nn.GroupNorm(2, 4)).eval()
    program = torch.export.export(model, (torch.ones(1, 3, 8, 8),))
    assert diagnose_export(program).findings == ()
    assert diagnose_export(program.run_decompositions()).findings == ()
