"""Rules on how a Keras model is trained: its compilation, optimizer and regularizers."""

import math
from collections.abc import Iterator

from bnkit.diagnosis.finding import Finding
from bnkit.keras.evidence import Evidence
from bnkit.keras.graph import changed_since_compile, is_decayed

_FAST = 1000  # steps: what halves so fast is dead after a few thousand


def frozen_after_compile(evidence: Evidence) -> Iterator[Finding]:
    """Find batch norms whose trainable flag was changed after compile, which decides on it."""
    changed = {id(layer) for layer in changed_since_compile(evidence.model)}
    paths = tuple(norm.path for norm in evidence.norms if id(norm.layer) in changed)
    if paths:
        flags = {norm.layer.trainable for norm in evidence.norms if norm.path in paths}
        yield Finding(
            "frozen-after-compile",
            "warning",
            paths,
            {"trainable now": ", ".join(map(str, sorted(flags)))},
            "The flag was changed after compile. What fit does then depends on the backend: "
            "TensorFlow goes on as it was compiled, torch follows the flag, jax raises an error.",
            "Call model.compile again after the change.",
        )


def weight_decay(evidence: Evidence) -> Iterator[Finding]:
    """Find gamma and beta that the optimizer decays, or a regularizer."""
    optimizer = getattr(evidence.model, "optimizer", None) if evidence.model.compiled else None
    for norm in evidence.norms:
        held = {"gamma": norm.layer.gamma, "beta": norm.layer.beta}
        own = {name: variable for name, variable in held.items() if variable is not None}
        regularised = [n for n in own if getattr(norm.layer, f"{n}_regularizer", None) is not None]
        decayed = [n for n, variable in own.items() if is_decayed(optimizer, variable)]
        if not norm.trains or not (regularised or decayed):
            continue
        measured = {"decayed": ", ".join(decayed)} if decayed else {}
        measured |= {"with a regularizer": ", ".join(regularised)} if regularised else {}
        steps = _half_life(optimizer) if decayed else math.inf
        yield Finding(
            "weight-decay",
            "warning" if steps < _FAST else "info",
            (norm.path,),
            {**measured, **({"half-life in steps": steps} if decayed else {})},
            "Decay of gamma and beta does not make the function smoother, as it does for weights: "
            "it shrinks outputs, and kills channels whose gradient is small.",
            'Leave them out: optimizer.exclude_from_weight_decay(var_names=["gamma", "beta"]), '
            "and no gamma_regularizer or beta_regularizer.",
        )


def _half_life(optimizer: object) -> float:
    """Return the steps in which decay alone halves a value: log 2 over rate · decay."""
    rate = float(optimizer.learning_rate)  # type: ignore[attr-defined]  # a Keras optimizer's
    share = rate * float(optimizer.weight_decay)  # type: ignore[attr-defined]  # as above
    return math.log(2) / share if share > 0 else math.inf
