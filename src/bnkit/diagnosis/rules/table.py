"""The rules, in the order of a model's life: each a name, a sentence, and the function that checks.

To write a rule: its function in the file of its kind, which gives it its name, an entry here, and
its page in `explanations/`, whose title is the sentence.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnkit.diagnosis.evidence import Evidence
from bnkit.diagnosis.finding import Finding
from bnkit.diagnosis.rules import (
    axes,
    biases,
    dropouts,
    export,
    mixtures,
    neighbours,
    noise,
    numbers,
    optimizing,
    parameters,
    running_statistics,
    staleness,
    uses,
)
from bnkit.extras import joined

FOLDER = Path(__file__).parents[1] / "explanations"
Check = Callable[[Evidence], Iterable[Finding]]


@dataclass(frozen=True)
class Rule:
    """One trouble: its slug, one sentence on it, and `check`, which finds it.

    `follows` are slugs of rules: a finding of this rule is a consequence of theirs in a layer that
    both name, and is grouped under it. Its explanation stands in `folder`, and on a `page` of the
    docs.
    """

    slug: str
    summary: str
    check: Callable[[Any], Iterable[Finding]]
    follows: tuple[str, ...] = ()
    folder: Path = FOLDER
    page: str = "docs/rules.md"


_CHECKS: Mapping[str, tuple[Check, ...]] = {
    "structure": (
        biases.cancelled_bias,
        neighbours.after_activation,
        dropouts.dropout_before,
        neighbours.on_logits,
        uses.one_value_per_channel,
        axes.wrong_axis,
        uses.fails_in_training,
        mixtures.several_distributions,
        neighbours.unfolded,
        neighbours.two_normalisations,
        mixtures.padding_in_statistics,
        uses.checkpointed_twice,
        uses.two_forwards,
        uses.frozen_but_batch_statistics,
    ),
    "state": (
        running_statistics.never_updated,
        numbers.non_finite,
        numbers.momentum_convention,
        running_statistics.warming_up,
        numbers.half_precision_statistics,
        staleness.stale_statistics,
        numbers.large_eps,
        running_statistics.collapsed_variance,
        noise.noisy_statistics,
        parameters.dead_channels,
        parameters.negative_gamma,
        parameters.exploding_gamma,
    ),
    "training": (
        optimizing.weight_decay,
        optimizing.missing_from_optimizer,
        optimizing.half_precision_training,
        optimizing.small_micro_batch,
        noise.unsynchronised,
        noise.sync_without_group,
        staleness.train_eval_gap,
    ),
    "export": (export.training_mode_export, export.exported_batch_norm),
}

_OF_STATISTICS = """
    warming-up momentum-convention half-precision-statistics several-distributions dropout-before
    frozen-but-batch-statistics
"""
_FOLLOWS = {
    "fails-in-training": "wrong-axis",
    "warming-up": "momentum-convention",
    "half-precision-statistics": "half-precision-training",
    "stale-statistics": f"never-updated {_OF_STATISTICS}",
    "noisy-statistics": "one-value-per-channel unsynchronised sync-without-group small-micro-batch",
    "train-eval-gap": f"stale-statistics never-updated non-finite {_OF_STATISTICS}",
}


def rule_of(check: Callable[[Any], Iterable[Finding]], folder: Path = FOLDER) -> Rule:
    """Return the rule that is called as its function, with the title of its page."""
    slug = check.__name__.replace("_", "-")
    return Rule(
        slug, summary_of(slug, folder), check, tuple(_FOLLOWS.get(slug, "").split()), folder
    )


def summary_of(slug: str, folder: Path = FOLDER) -> str:
    """Return the title of a rule's page.

    >>> summary_of("on-logits")[:24]
    'A batch norm on the outp'
    """
    with (folder / f"{slug}.md").open(encoding="utf-8") as page:
        return page.readline().removeprefix("#").strip()


# Rules of one's own join by an entry point of the group "bnkit.rules", which names a `Rule`.
_JOINED: tuple[Rule, ...] = tuple(joined("bnkit.rules").values())
KINDS: Mapping[str, tuple[Rule, ...]] = {
    **{kind: tuple(map(rule_of, checks)) for kind, checks in _CHECKS.items()},
    **({"your own": _JOINED} if _JOINED else {}),
}
RULES: tuple[Rule, ...] = tuple(rule for rules in KINDS.values() for rule in rules)
