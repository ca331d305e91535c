"""Rules on the optimizer: weight decay, parameters that it lacks, half precision, accumulation."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bnkit.diagnosis.evidence import Evidence, module_of, once
from bnkit.diagnosis.finding import Finding
from bnkit.diagnosis.rules.fixes import converting, in_float32
from bnkit.diagnosis.rules.noise import effective_values, noise_of
from bnkit.diagnosis.rules.reading import HALF_PRECISION, QUARTER, Reading, readings
from bnkit.layers.accumulated import AccumulatedBatchNorm
from bnkit.parameters import undecayed_parameters

# With this half-life in steps a γ that its gradient does not hold is a hundredth of itself, and
# dead, after 6600 steps: most trainings take more. The usual recipes (rate 0.1, momentum 0.9,
# decay 1e-4) have one of 6900.
_FAST = 1000


def weight_decay(evidence: Evidence) -> Iterator[Finding]:
    """Find batch norm's parameters, and biases, that the optimizer decays."""
    norms = {name for r in readings(evidence) for name in _parameters(evidence, r)}
    spared = {id(p) for p in undecayed_parameters(evidence.model)}
    others = {name for name, p in evidence.model.named_parameters() if id(p) in spared} - norms
    for kind, names in (("γ and β of batch norm", norms), ("biases and other scales", others)):
        decayed = {
            name: half_life
            for name, half_life in _half_lives(evidence)
            if name in names and evidence.trains(name)
        }
        for layer in dict.fromkeys(map(module_of, decayed)):
            own = [life for name, life in decayed.items() if module_of(name) == layer]
            fast = min(own) < _FAST and names is norms
            yield Finding(
                "weight-decay",
                "warning" if fast else "info",
                (layer,),
                {"parameters": len(own), "half-life in steps": min(own)},
                f"The optimizer decays {kind}. That does not make the function smoother, as it "
                f"does for weights: it shrinks outputs, and kills channels whose gradient is small."
                + (" At this rate they are dead within a few thousand steps." if fast else ""),
                "Give the optimizer bnkit.parameter_groups(model, weight_decay=...), which leaves "
                "them out.",
            )


def _parameters(evidence: Evidence, reading: Reading) -> list[str]:
    """Return the names of the parameters of a batch norm: all of its own, also parametrised ones.

    A function's are those that it was called with.
    """
    if reading.norm is None:
        given = (reading.names.get(what, "") for what in ("weight", "bias"))
        return [name for name in given if name in _of_modules(evidence).get(module_of(name), ())]
    return [*_of_modules(evidence).get(reading.path, ())]


@once
def _of_modules(evidence: Evidence) -> Mapping[str, Sequence[str]]:
    """Return the names of the model's parameters by the paths of their modules."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, _ in evidence.model.named_parameters():
        names[module_of(name)].append(name)
    return names


def _half_lives(evidence: Evidence) -> Iterator[tuple[str, float]]:
    """Yield the names of decayed parameters, and the steps in which decay alone halves them."""
    for group in evidence.groups or ():
        decay, rate = _number(group, "weight_decay"), _number(group, "lr")
        momentum = _number(group, "momentum")
        each_step = decay * rate / (1 - momentum if 0 <= momentum < 1 else 1)
        if decay > 0:
            half_life = math.log(2) / each_step if each_step > 0 else math.inf
            yield from ((name, half_life) for name in group["params"])


def _number(group: Mapping[str, Any], key: str) -> float:
    value = group.get(key, 0.0)
    return float(value) if isinstance(value, int | float | Tensor) else 0.0


def missing_from_optimizer(evidence: Evidence) -> Iterator[Finding]:
    """Find parameters of batch norms that train, and that the optimizer does not hold."""
    if evidence.groups is None:
        return
    known = {name for group in evidence.groups for name in group["params"]}
    strange = not known
    for reading in readings(evidence):
        missing = [
            name
            for name in _parameters(evidence, reading)
            if name not in known and evidence.trains(name)
        ]
        if not missing:
            continue
        yield Finding(
            "missing-from-optimizer",
            "error" if strange else "warning",
            (reading.path,),
            {"parameters": len(missing)},
            "The optimizer holds no parameter of this model: it was made for another one, such as "
            "the model before a change."
            if strange
            else "These γ and β take gradients, but no step: the optimizer does not hold them.",
            "Make the optimizer after the model is changed, or add them: "
            'optimizer.add_param_group({"params": layer.parameters()}).',
        )


def half_precision_training(evidence: Evidence) -> Iterator[Finding]:
    """Find batch norms that train with γ and β in half precision."""
    if evidence.in_eval_mode:
        return
    for reading in readings(evidence):
        dtype = _half_weight(evidence, reading)
        if dtype is None:
            continue
        yield Finding(
            "half-precision-training",
            "warning",
            (reading.path,),
            {"dtype": str(dtype), "smallest relative step": torch.finfo(dtype).eps},
            f"γ and β train in {dtype}: a step of under {torch.finfo(dtype).eps / 2:.1g} of their "
            f"value is rounded away, and so are small learning rates.",
            "Keep the model in float32 and run it under torch.autocast, or at least batch norm: "
            "layer.float().",
            in_float32(reading),
        )


def _half_weight(evidence: Evidence, reading: Reading) -> torch.dtype | None:
    trained = (name for name in _parameters(evidence, reading) if evidence.trains(name))
    dtypes = (evidence.model.get_parameter(name).dtype for name in trained)
    return next((dtype for dtype in dtypes if dtype in HALF_PRECISION), None)


def small_micro_batch(evidence: Evidence) -> Iterator[Finding]:
    """Find gradient accumulation whose micro-batches are too small for batch norm.

    How many forwards there are to a step, the layers and the optimizer have counted: the former
    have n times the steps of the latter.
    """
    for reading in readings(evidence):
        forwards = forwards_of_a_step(evidence, reading)
        if forwards < 2 or reading.frozen or isinstance(reading.module, AccumulatedBatchNorm):
            continue
        values = effective_values(reading)
        noise = noise_of(values)
        if values is not None and noise <= QUARTER:
            continue
        measured = {} if values is None else {"effective values": values, "output noise": noise}
        yield Finding(
            "small-micro-batch",
            "info" if values is None else "warning",
            (reading.path,),
            {"forwards of a step": forwards, **measured},
            f"The optimizer steps once in {forwards} forwards. If gradients are accumulated, the "
            f"statistics are those of one micro-batch all the same"
            + ("." if values is None else ", which is too small for them."),
            "Let the micro-batches share statistics: bnkit.convert(model, "
            f'"accumulated", micro_batches={forwards}), or take larger ones.',
            converting(reading, "accumulated", micro_batches=forwards),
        )


def forwards_of_a_step(evidence: Evidence, reading: Reading) -> int:
    """Return how many mini-batches the layer counted for each step of the optimizer; 0 unless even.

    A layer that has counted others before, as a pretrained one has, gives an integer by chance
    in a tenth of cases at most, since the steps are to be ten times the forwards of each; one that
    counts in the backward, too, under activation checkpointing, is not asked.
    """
    steps, batches = _steps(evidence), reading.batches
    if not steps or not batches or reading.norm is None:
        return 0
    name, step = reading.names["num_batches_tracked"], evidence.step
    if step is not None and name in step.written_in_backward:
        return 0
    forwards = batches // max(1, len(reading.norm.training_calls))
    each, rest = divmod(forwards, steps)
    return each if rest < each <= steps / 10 else 0


def _steps(evidence: Evidence) -> int:
    """Return the steps that the optimizer has counted, 0 if it does not count."""
    if evidence.optimizer is None:
        return 0
    states: Iterable[Any] = evidence.optimizer.state.values()
    counts = [state["step"] for state in states if isinstance(state, dict) and "step" in state]
    return max((int(count) for count in counts), default=0)
