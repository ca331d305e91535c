"""Rules about training: the optimizer, accumulation, ranks, and the gap to eval mode."""

from bnkit.diagnosis.rules.opening import train_eval_gap
from bnkit.diagnosis.rules.optimizing import (
    half_precision_training,
    missing_from_optimizer,
    small_micro_batch,
    weight_decay,
)
from bnkit.diagnosis.rules.ranks import sync_without_group, unsynchronised
from bnkit.diagnosis.rules.rule import Rule

RULES: tuple[Rule, ...] = (
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
