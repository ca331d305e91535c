"""Rules about the state: running statistics, the numbers beside them, and γ."""

from bnkit.diagnosis.rules.noise import noisy_statistics
from bnkit.diagnosis.rules.numbers import (
    half_precision_statistics,
    large_eps,
    momentum_convention,
    non_finite,
)
from bnkit.diagnosis.rules.parameters import dead_channels, exploding_gamma, negative_gamma
from bnkit.diagnosis.rules.rule import Rule
from bnkit.diagnosis.rules.running_statistics import collapsed_variance, never_updated, warming_up
from bnkit.diagnosis.rules.staleness import stale_statistics

RULES: tuple[Rule, ...] = (
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
