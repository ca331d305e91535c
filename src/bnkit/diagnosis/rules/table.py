"""All rules, in the order of a model's life: structure, state, training, export."""

from collections.abc import Mapping

from bnkit.diagnosis.rules import export, state, structure, training
from bnkit.diagnosis.rules.rule import Rule

KINDS: Mapping[str, tuple[Rule, ...]] = {
    "structure": structure.RULES,
    "state": state.RULES,
    "training": training.RULES,
    "export": export.RULES,
}
RULES: tuple[Rule, ...] = tuple(rule for rules in KINDS.values() for rule in rules)
