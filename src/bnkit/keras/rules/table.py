"""The rules for Keras models, in the order of a model's life. The pages stand in explanations/."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from bnkit.diagnosis.finding import Finding
from bnkit.diagnosis.rules.table import Rule, rule_of
from bnkit.keras.evidence import Evidence
from bnkit.keras.rules import statistics, structure, training

FOLDER = Path(__file__).parents[1] / "explanations"
Check = Callable[[Evidence], Iterable[Finding]]

_CHECKS: Mapping[str, tuple[Check, ...]] = {
    "structure": (
        structure.cancelled_bias,
        structure.wrong_axis,
        structure.on_logits,
        structure.two_normalisations,
        structure.several_distributions,
        structure.training_false_overridden,
        structure.training_true_in_inference,
        structure.padding_in_statistics,
        structure.unfolded,
    ),
    "state": (
        statistics.never_updated,
        statistics.non_finite,
        statistics.torch_momentum,
        statistics.half_precision_statistics,
        statistics.stale_statistics,
        statistics.large_eps,
    ),
    "training": (
        statistics.one_value_per_channel,
        statistics.cancelled_variance,
        statistics.noisy_statistics,
        training.frozen_after_compile,
        training.weight_decay,
        statistics.train_eval_gap,
    ),
}

_OF_STATISTICS = (
    "never-updated",
    "torch-momentum",
    "half-precision-statistics",
    "several-distributions",
    "training-false-overridden",
    "cancelled-variance",
)
_FOLLOWS = {
    "stale-statistics": _OF_STATISTICS,
    "noisy-statistics": ("one-value-per-channel",),
    "train-eval-gap": ("stale-statistics", "non-finite", *_OF_STATISTICS),
    "non-finite": ("cancelled-variance",),
}


def _rule(check: Check) -> Rule:
    rule = rule_of(check, FOLDER)
    return replace(rule, follows=_FOLLOWS.get(rule.slug, ()), page="docs/keras-rules.md")


KINDS: Mapping[str, tuple[Rule, ...]] = {
    kind: tuple(map(_rule, checks)) for kind, checks in _CHECKS.items()
}
HEAD = """# The rules of the doctor for Keras models

`bnkit doctor net.keras` and `bnkit.keras.diagnose` look for these troubles. `bnkit explain --keras`
shows them in the terminal, and `skip=` switches one off. "The fix" is what `diagnosis.fixed(model)`
and `--fix` apply.

<!-- Made from src/bnkit/keras/explanations: change it there. -->"""
RULES: tuple[Rule, ...] = tuple(rule for rules in KINDS.values() for rule in rules)
