"""All rules, in the order of a model's life: structure, state, training, export."""

from bnkit.diagnosis.rules import export, state, structure, training
from bnkit.diagnosis.rules.rule import Rule

RULES: tuple[Rule, ...] = (*structure.RULES, *state.RULES, *training.RULES, *export.RULES)
