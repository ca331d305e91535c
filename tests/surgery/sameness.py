"""`Tally`: how near changed networks must come to those they were made of, and how many miss it.

The error is max|a − b| / max|a|. In float64 it is at most 1e-12, for every network. In float32 it
is at most 1e-5 for networks with |mean|/std up to 100 at the inputs of their batch norms, if they
say themselves what they compute: if their own output in float32 is within 1e-6 of that in float64.

Some do not, for batch norms magnify what is rounded before them. An input of |mean|/std 100 has
been rounded by 6e-8 of its mean, so by 6e-6 standard deviations, and torch normalises it on CPUs as
a·x + b, which rounds twice more; the next batch norms, and outputs that cancel, magnify that. No
change can bring two such outputs together: where the original is off by 4e-5 and the changed one by
nothing, they differ by 4e-5. And a fold cannot round as the network did: a layer that takes in a
batch norm before it adds up terms as large as the means, which the batch norm took away first. So
these networks get ten times their own rounding. They are counted, and few may need it.
"""

import copy
from dataclasses import dataclass, field

import torch

from bnkit.observation import observing_inputs
from bnkit.surgery.verification import verify

EXACT = 1e-12  # in float64
BOUND = 1e-5  # in float32, for ...
LARGEST_RATIO = 100.0  # ... |mean|/std of this at most, and ...
CLEAR = 1e-6  # ... what a network rounds itself; beyond that,
TIMES_OWN = 10  # so many times its own rounding,
SHARE = 0.05  # but BOUND all the same for all but so many: hypothesis draws like ones together


def error(a, b):
    """Return max|a − b| / max|a|."""
    a, b = a.double(), b.double()
    return ((a - b).abs().max() / (a.abs().max() or 1)).item()


def hardest_ratio(model, example):
    """Return the largest |mean|/std at the inputs of the batch norms, by which they divide.

    The mean is the larger of the running mean and of that seen on the example; the standard
    deviation is that of the running statistics, with eps.
    """
    norms = {
        path: part
        for path, part in model.named_modules()
        if getattr(part, "running_mean", None) is not None
    }
    with torch.no_grad(), observing_inputs(model, norms) as seen:
        model(example)
    ratios = [_ratio(norms[path], moments.mean) for path, moments in seen.items()]
    return max(ratios, default=0.0)


def _ratio(norm, seen):
    mean = torch.maximum(norm.running_mean.double().abs(), seen.abs())
    std = (norm.running_var.double() + getattr(norm, "eps", 1e-5)).sqrt()
    return (mean / std).max().item()


@dataclass
class Tally:
    """Checks networks, and keeps their errors in float32 to say how many are over the bound."""

    errors: list = field(default_factory=list)
    beyond: list = field(default_factory=list)  # errors of those with a larger |mean|/std

    def check(self, network, changed, exact):
        """Assert that `changed` computes what the network does, and return its error.

        `exact` is the model changed in float64.
        """
        wide = network.double()
        with torch.no_grad():
            truth = wide.model(wide.example)
            before, after = network.model(network.example), changed(network.example)
            assert error(truth, exact(wide.example)) <= EXACT
        own, found = error(truth, before), error(before, after)
        ratio = max(hardest_ratio(model, wide.example) for model in (wide.model, exact))
        if ratio > LARGEST_RATIO * (1 + 1e-6):  # running statistics are rounded to float32
            self.beyond.append(found)
        else:
            self.errors.append(found)
            assert found <= (BOUND if own <= CLEAR else TIMES_OWN * own), f"its own: {own:.1e}"
        return found

    def finish(self):
        """Print the count, and assert that few networks are over the bound."""
        print(self)  # noqa: T201  pytest -rP shows it
        assert sum(found > BOUND for found in self.errors) <= SHARE * len(self.errors)

    def __str__(self):
        over = [found for found in self.errors if found > BOUND]
        return (
            f"{len(self.errors)} networks with |mean|/std up to {LARGEST_RATIO:g}: {len(over)} off "
            f"by more than {BOUND:g} in float32, all of which round by more than {CLEAR:g} "
            f"themselves; the largest error {max(self.errors, default=0):.1e}. "
            f"{len(self.beyond)} with more, the largest error {max(self.beyond, default=0):.1e}. "
            f"All within {EXACT:g} in float64."
        )


def verified(original, changed, example, *, exactly=None, tolerance=None):
    """Return the proof that `changed` computes what `original` does, whatever made it.

    `exactly` makes the changed model in float64 from the original in float64; by default it is
    `changed` in float64.
    """
    exactly = exactly or (lambda _: copy.deepcopy(changed).double())
    made = []

    def change(model):
        made.append(model)
        wide = {p.dtype for p in model.parameters()} <= {torch.float64}
        return exactly(model) if wide and len(made) > 1 else copy.deepcopy(changed)

    return verify(original, change, example, tolerance=tolerance)
