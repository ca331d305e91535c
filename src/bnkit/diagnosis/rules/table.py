"""The rules, in the order of a model's life: each a name, a sentence, and the function that checks.

To write a rule: its function in the file of its kind, an entry here, its page in `explanations/`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from bnkit.diagnosis.evidence import Evidence
from bnkit.diagnosis.finding import Finding
from bnkit.diagnosis.rules.biases import cancelled_bias
from bnkit.diagnosis.rules.dropouts import dropout_before
from bnkit.diagnosis.rules.export import exported_batch_norm, training_mode_export
from bnkit.diagnosis.rules.mixtures import padding_in_statistics, several_distributions
from bnkit.diagnosis.rules.neighbours import (
    after_activation,
    on_logits,
    two_normalisations,
    unfolded,
)
from bnkit.diagnosis.rules.noise import noisy_statistics, sync_without_group, unsynchronised
from bnkit.diagnosis.rules.numbers import (
    half_precision_statistics,
    large_eps,
    momentum_convention,
    non_finite,
)
from bnkit.diagnosis.rules.optimizing import (
    half_precision_training,
    missing_from_optimizer,
    small_micro_batch,
    weight_decay,
)
from bnkit.diagnosis.rules.parameters import dead_channels, exploding_gamma, negative_gamma
from bnkit.diagnosis.rules.running_statistics import collapsed_variance, never_updated, warming_up
from bnkit.diagnosis.rules.staleness import stale_statistics, train_eval_gap
from bnkit.diagnosis.rules.uses import (
    checkpointed_twice,
    frozen_but_batch_statistics,
    one_value_per_channel,
    two_forwards,
)


@dataclass(frozen=True)
class Rule:
    """One trouble: its slug, one sentence on it, and `check`, which finds it.

    `follows` are slugs of rules: a finding of this rule is a consequence of theirs in a layer that
    both name, and is grouped under it.
    """

    slug: str
    summary: str
    check: Callable[[Evidence], Iterable[Finding]]
    follows: tuple[str, ...] = ()


_STRUCTURE = (
    Rule("cancelled-bias", "A bias that the batch norm after it subtracts.", cancelled_bias),
    Rule("after-activation", "A batch norm after the activation.", after_activation),
    Rule("dropout-before", "Dropout before a batch norm shifts its variance.", dropout_before),
    Rule("on-logits", "A batch norm on the output of the model.", on_logits),
    Rule(
        "one-value-per-channel",
        "A batch norm that gets one value per channel in training.",
        one_value_per_channel,
    ),
    Rule(
        "several-distributions",
        "A batch norm whose running statistics mix several distributions.",
        several_distributions,
    ),
    Rule("unfolded", "Batch norms of a model in eval mode that can be folded away.", unfolded),
    Rule("two-normalisations", "Two normalisations in a row.", two_normalisations),
    Rule(
        "padding-in-statistics",
        "Padding of sequences that enters the statistics.",
        padding_in_statistics,
    ),
    Rule(
        "checkpointed-twice",
        "Activation checkpointing that updates the running statistics twice.",
        checkpointed_twice,
    ),
    Rule(
        "two-forwards",
        "Two forwards before one backward under DistributedDataParallel.",
        two_forwards,
    ),
    Rule(
        "frozen-but-batch-statistics",
        "A frozen batch norm that still normalises by the mini-batch.",
        frozen_but_batch_statistics,
    ),
)

_STATE = (
    Rule(
        "never-updated",
        "The running statistics are still 0 and 1: eval mode normalises nothing.",
        never_updated,
    ),
    Rule(
        "non-finite",
        "State or inputs of a batch norm are NaN, infinite, or a variance that is negative.",
        non_finite,
    ),
    Rule(
        "momentum-convention",
        "A momentum of 0.9 or more is another framework's: torch's is 1 minus it.",
        momentum_convention,
    ),
    Rule(
        "warming-up",
        "The running statistics still hold a share of the 0 and 1 from which they started.",
        warming_up,
        follows=("momentum-convention",),
    ),
    Rule(
        "half-precision-statistics",
        "The running statistics are kept in half precision, which small updates do not change.",
        half_precision_statistics,
        follows=("half-precision-training",),
    ),
    Rule(
        "stale-statistics",
        "The running statistics are not those of the given mini-batches.",
        stale_statistics,
        follows=(
            "never-updated",
            "warming-up",
            "momentum-convention",
            "half-precision-statistics",
            "several-distributions",
            "dropout-before",
            "frozen-but-batch-statistics",
        ),
    ),
    Rule(
        "large-eps",
        "The eps outweighs the variance, or was meant to be something else.",
        large_eps,
    ),
    Rule(
        "collapsed-variance",
        "The input of a channel hardly varies, so it carries its bias and little else.",
        collapsed_variance,
    ),
    Rule(
        "noisy-statistics",
        "Layers train by the statistics of too few independent values.",
        noisy_statistics,
        follows=(
            "one-value-per-channel",
            "unsynchronised",
            "sync-without-group",
            "small-micro-batch",
        ),
    ),
    Rule(
        "dead-channels",
        "γ is 0 or near it: the channels hand on nothing of their input and can be pruned.",
        dead_channels,
    ),
    Rule(
        "negative-gamma",
        "γ is negative before a ReLU: some tools take it for positive.",
        negative_gamma,
    ),
    Rule(
        "exploding-gamma",
        "γ has grown so large that it amplifies, and half precision loses the other channels.",
        exploding_gamma,
    ),
)

_TRAINING = (
    Rule(
        "weight-decay",
        "The optimizer decays parameters of batch norms, or biases.",
        weight_decay,
    ),
    Rule(
        "missing-from-optimizer",
        "The optimizer does not hold parameters of batch norms that take gradients.",
        missing_from_optimizer,
    ),
    Rule(
        "half-precision-training",
        "Batch norms train with γ and β in half precision.",
        half_precision_training,
    ),
    Rule(
        "small-micro-batch",
        "Gradients are accumulated over micro-batches that are too small for their statistics.",
        small_micro_batch,
    ),
    Rule(
        "unsynchronised",
        "Each of several ranks normalises by its own few samples.",
        unsynchronised,
    ),
    Rule(
        "sync-without-group",
        "A synchronised batch norm has no other rank to share statistics with.",
        sync_without_group,
    ),
    Rule(
        "train-eval-gap",
        "The model computes something else in eval mode than in training, dropout aside.",
        train_eval_gap,
        follows=(
            "stale-statistics",
            "never-updated",
            "non-finite",
            "warming-up",
            "momentum-convention",
            "half-precision-statistics",
            "several-distributions",
            "dropout-before",
            "frozen-but-batch-statistics",
        ),
    ),
)

_EXPORT = (
    Rule(
        "training-mode-export",
        "A batch norm takes the mini-batch's statistics in a model that is in eval mode.",
        training_mode_export,
    ),
    Rule(
        "exported-batch-norm",
        "An exported program still holds a batch norm, in training mode or unfolded.",
        exported_batch_norm,
    ),
)

KINDS: Mapping[str, tuple[Rule, ...]] = {
    "structure": _STRUCTURE,
    "state": _STATE,
    "training": _TRAINING,
    "export": _EXPORT,
}
RULES: tuple[Rule, ...] = tuple(rule for rules in KINDS.values() for rule in rules)
