"""The rule on biases that a batch norm cancels."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bnkit.dataflow import Call, Dataflow
from bnkit.diagnosis.evidence import Evidence
from bnkit.diagnosis.finding import Finding
from bnkit.diagnosis.fix import by_edit
from bnkit.diagnosis.rules.axes import channels_of_features
from bnkit.diagnosis.rules.fixes import edit
from bnkit.diagnosis.rules.places import Place, chained
from bnkit.roles import can_own_batch_norm
from bnkit.surgery.folding.matching import original_class

_FUNCTIONS = ("linear", "conv1d", "conv2d", "conv3d")
# Passages that hand a constant of a channel on as it is; pooling only without zeros at the edge.
_KEEP = frozenset(
    """
    Identity Flatten Unflatten MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d
    AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d
    AdaptiveMaxPool3d view view_as reshape reshape_as flatten unflatten squeeze unsqueeze transpose
    swapaxes swapdims permute movedim moveaxis t T mT contiguous clone
    """.split()
)
# A bias that trains has about the gradient of its weight; one that is cancelled has what rounding
# leaves, 1e-6 of it in float32.
_CANCELLED = 1e-3


@dataclass(frozen=True, eq=False)
class _Cancelled:
    place: Place
    start: Call  # which adds the bias
    bias: str
    channels: Tensor  # of the batch norm, by feature


def cancelled_bias(evidence: Evidence) -> Iterator[Finding]:
    """Find biases that a batch norm subtracts again with the mean of the mini-batch.

    Ioffe and Szegedy 2015, section 3.2. All readers of the layer's output must be such batch norms.
    """
    flow = evidence.trained_flow
    if flow is None:
        return
    found: dict[str, list[_Cancelled]] = {}
    for each in _candidates(evidence):
        found.setdefault(each.bias, []).append(each)
    for bias, all_of_it in found.items():
        readers = _readers(flow, bias)
        if readers == {each.start.index for each in all_of_it}:
            yield from _finding(evidence, bias, all_of_it)


def _candidates(evidence: Evidence) -> Iterator[_Cancelled]:
    for flow, place, chain in chained(evidence):
        start = chain.start
        bias = None if start is None else _bias_of(start)
        kept = all(_keeps_shift(call) for call in chain.passages)
        if start is None or bias is None or not kept or not place.trains or not chain.alone:
            continue
        channels = channels_of_features(flow, chain, place)
        if channels is not None:
            yield _Cancelled(place, start, bias, channels)


def _bias_of(call: Call) -> str | None:
    """Return the name of the bias that a weight layer or function adds, None for none."""
    if can_own_batch_norm(call.module):
        own = isinstance(getattr(call.module, "bias", None), nn.Parameter)
        return f"{call.name}.bias" if own else None
    if call.module is None and call.name in _FUNCTIONS:
        given = call.arguments[2] if len(call.arguments) > 2 else call.keywords.get("bias")
        return given if type(given) is str else None
    return None


def _keeps_shift(passage: Call) -> bool:
    name = passage.name if passage.module is None else passage.kind
    return name in _KEEP and not getattr(passage.module, "padding", 0)


def _readers(flow: Dataflow, bias: str) -> set[int]:
    path = bias.rpartition(".")[0]
    functions = {call.index for call in flow.calls_reading(path) if bias in call.parameters}
    return functions | {call.index for call in flow.calls_of(path)}


def _finding(evidence: Evidence, bias: str, found: list[_Cancelled]) -> Iterator[Finding]:
    owner = bias.rpartition(".")[0]
    layer: Any = evidence.model.get_submodule(owner)
    gradients = evidence.step.gradients if evidence.step is not None else {}
    of_bias, of_weight = gradients.get(bias), gradients.get(f"{owner}.weight")
    share = of_bias / of_weight if of_bias is not None and of_weight else None
    of_functions = any(each.start.module is None for each in found)
    of_torch = of_functions or original_class(layer).__module__.startswith("torch.")
    if not of_torch and (share is None or share > _CANCELLED):
        return
    measured = {"parameters": evidence.model.get_parameter(bias).numel()}
    fed = {each.place.path: each.channels for each in found}
    simple = len(fed) == len(found) and all(each.place.norm for each in found)
    fixable = simple and not of_functions and not hasattr(layer, "parametrizations")
    drop = edit(owner, "drop_bias", "drop the bias", values=fed)
    yield Finding(
        "cancelled-bias",
        "info",
        (owner, *dict.fromkeys(each.place.path for each in found)),
        measured if share is None else {**measured, "gradient / that of the weight": share},
        "The batch norm subtracts this bias again with the mean of the mini-batch, so it never "
        "trains and costs memory and time.",
        "Make the layer with bias=False; the batch norm's own bias takes its part.",
        by_edit(drop, needs=[*fed]) if fixable else None,
    )
