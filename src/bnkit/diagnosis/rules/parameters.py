"""Rules on γ: dead channels, negative γ before a ReLU, γ that explodes."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.dataflow import Call
from bnkit.diagnosis.evidence import Evidence, once
from bnkit.diagnosis.finding import Finding
from bnkit.diagnosis.fix import Fix, by_edit
from bnkit.diagnosis.rules.axes import channels_of_features
from bnkit.diagnosis.rules.fixes import edit
from bnkit.diagnosis.rules.places import chains_to_norms
from bnkit.diagnosis.rules.reading import Reading, readings
from bnkit.internals import AnyTransposedConv
from bnkit.roles import can_own_batch_norm
from bnkit.surgery.folding.matching import original_class
from bnkit.surgery.normalized import NormalizedOutput

# Channels of under a hundredth of the layer's typical γ: without all of them together the layer's
# output changes by less than a hundredth of its size.
DEAD = 0.01
# In float16, which has 11 bits, a channel of this γ is rounded by 2⁻¹¹ · 100 = 0.05: a twentieth of
# all that a channel of γ = 1 carries.
EXPLODED = 100.0


# Passages that only move values, or add them up: their output turns its sign with their input.
_MOVE = frozenset(
    """
    Identity Flatten Unflatten AvgPool1d AvgPool2d AvgPool3d AdaptiveAvgPool1d AdaptiveAvgPool2d
    AdaptiveAvgPool3d view view_as reshape reshape_as flatten unflatten squeeze unsqueeze transpose
    swapaxes swapdims permute movedim moveaxis t T mT contiguous clone
    """.split()
)


def dead_channels(evidence: Evidence) -> Iterator[Finding]:
    """Find channels that γ switches off."""
    for reading in readings(evidence):
        gamma = finite_gamma(reading)
        if gamma is None or not bool(is_dead(gamma).any()):
            continue
        dead = is_dead(gamma)
        count = int(dead.sum())
        all_dead = count == len(gamma)
        fresh = all_dead and not evidence.in_eval_mode
        share = count / len(gamma)
        yield Finding(
            "dead-channels",
            "warning" if share > 0.5 and not fresh else "info",  # most of the layer is idle
            (reading.path,),
            {
                "channels": count,
                "share": share,
                "largest |γ| of them": gamma[dead].abs().max().item(),
            },
            "All γ are 0, so the layer hands on its bias only: the start of a residual branch, or "
            "dead."
            if all_dead
            else "γ switches these channels off: they hand on their bias and nothing of the input.",
            "They can be pruned: their output is a constant. If weight decay drove them there, "
            "leave γ out of it: bnkit.parameter_groups(model, weight_decay=...).",
        )


def finite_gamma(reading: Reading) -> Tensor | None:
    """Return γ in float64, None where there is none or it is not finite."""
    gamma = reading.weight
    return gamma if gamma is not None and bool(gamma.isfinite().all()) else None


def is_dead(gamma: Tensor) -> Tensor:
    """Return which channels γ switches off.

    >>> is_dead(torch.tensor([1.0, 0.001]))
    tensor([False,  True])
    """
    return gamma.abs() <= DEAD * gamma.square().mean().sqrt()


def negative_gamma(evidence: Evidence) -> Iterator[Finding]:
    """Find channels whose sign γ flips before a ReLU."""
    for reading in readings(evidence):
        gamma = reading.weight
        if gamma is None or not _rectified(evidence, reading):
            continue
        negative = gamma < 0
        if not bool(negative.any()):
            continue
        yield Finding(
            "negative-gamma",
            "info",
            (reading.path,),
            {
                "channels": int(negative.sum()),
                "share": negative.double().mean().item(),
                "smallest γ": gamma.min().item(),
            },
            "In these channels the ReLU keeps what is below the mean and cuts what is above. That "
            "is not a fault, but layers that take |γ| (in-place activated batch norm) and "
            "converters that swap a scale and a ReLU compute something else.",
            "Turn the sign of the weights that feed the channel and of γ, where a tool needs it.",
            _turning(evidence, reading),
        )


def _turning(evidence: Evidence, reading: Reading) -> Fix | None:
    """Return the fix where one weight layer of torch's, called once, feeds the batch norm only."""
    module: Any = reading.module
    leading = chains_to_norms(evidence).get(reading.path, ())
    if module is None or reading.domain or len(leading) != 1:
        return None
    flow, place, chain = leading[0]
    start = chain.start
    linear = all(call.name in _MOVE or call.kind in _MOVE for call in chain.passages)
    if start is None or not chain.alone or not linear or not _is_plain(start.module):
        return None
    channels = channels_of_features(flow, chain, place)
    calls = {call.index for call in (*flow.calls_of(start.name), *flow.calls_reading(start.name))}
    tied = any(_is_tied(evidence, path) for path in (start.name, reading.path))
    if channels is None or len(calls) > 1 or tied:
        return None
    feeding, values = {"feeding": start.name}, {"channels": channels}
    turned = edit(reading.path, "turn_signs", "turn signs", feeding, values)
    return by_edit(turned, needs=[reading.path])


def _is_plain(layer: nn.Module | None) -> bool:
    """Return whether its output turns its sign with weight and bias, of which it has its own."""
    if layer is None or not can_own_batch_norm(layer) or hasattr(layer, "parametrizations"):
        return False
    of_torch = original_class(layer).__module__.startswith("torch.")
    turned_groups = isinstance(layer, AnyTransposedConv) and layer.groups > 1
    return of_torch and not turned_groups  # whose weights hold the features of all groups at once


def _is_tied(evidence: Evidence, path: str) -> bool:
    """Return whether a parameter of this layer has another name, too."""
    own = evidence.model.get_submodule(path).parameters(recurse=False)
    names = _numbers_of_names(evidence)
    return any(names[id(parameter)] > 1 for parameter in own)


@once
def _numbers_of_names(evidence: Evidence) -> Counter[int]:
    named = evidence.model.named_parameters(remove_duplicate=False)
    return Counter(id(parameter) for _, parameter in named)


def exploding_gamma(evidence: Evidence) -> Iterator[Finding]:
    """Find γ so large that the layer amplifies, and half precision loses the other channels."""
    for reading in readings(evidence):
        gamma = finite_gamma(reading)
        if gamma is None:
            continue
        exploded = (gamma.abs() > EXPLODED) & _amplified(reading, gamma)
        if not bool(exploded.any()):
            continue
        yield Finding(
            "exploding-gamma",
            "warning",
            (reading.path,),
            {"channels": int(exploded.sum()), "largest |γ|": gamma.abs().max().item()},
            f"γ over {EXPLODED:g} amplifies what was normalised, and its gradient with it; in "
            f"float16 such a channel is rounded by a twentieth of what others carry.",
            "Lower the learning rate of γ, clip gradients, or go back to a checkpoint before it "
            "grew.",
        )


def _amplified(reading: Reading, gamma: Tensor) -> Tensor:
    """Return where γ > √(σ² + ε): an inserted batch norm, which hands on what it gets, is none."""
    variance = reading.running_var
    if variance is None or reading.untouched:
        return torch.ones_like(gamma, dtype=torch.bool)
    outgrown = gamma.abs() > 1.01 * (variance + reading.eps).sqrt()
    return outgrown if outgrown.dim() == 1 else outgrown.all(0)


def _rectified(evidence: Evidence, reading: Reading) -> bool:
    """Return whether a ReLU reads what the batch norm makes, and nothing else does."""
    norm, flow = reading.norm, evidence.flow
    if norm is None or flow is None or not norm.calls:
        return False
    if norm.owner is not None and not isinstance(norm.calls[0].module, NormalizedOutput):
        return False
    followers = [reader for call in norm.calls for reader in flow.following(call)]
    return bool(followers) and all(_is_relu(call) for call in followers)


def _is_relu(call: Call) -> bool:
    if call.module is not None:
        return isinstance(call.module, nn.ReLU | nn.ReLU6)
    return call.name.strip("_") in ("relu", "relu6")
