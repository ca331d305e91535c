"""Rules about the structure: what stands around a batch norm, and how it is used."""

from bnkit.diagnosis.rules.biases import cancelled_bias
from bnkit.diagnosis.rules.dropouts import dropout_before
from bnkit.diagnosis.rules.freezing import frozen_but_batch_statistics
from bnkit.diagnosis.rules.mixtures import padding_in_statistics, several_distributions
from bnkit.diagnosis.rules.neighbours import (
    after_activation,
    on_logits,
    two_normalisations,
    unfolded,
)
from bnkit.diagnosis.rules.rule import Rule
from bnkit.diagnosis.rules.uses import checkpointed_twice, one_value_per_channel, two_forwards

RULES: tuple[Rule, ...] = (
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
