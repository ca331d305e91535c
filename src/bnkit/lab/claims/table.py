"""The table of all claims, in the order in which they are listed."""

from typing import Any

from bnkit.lab.claiming.claim import Claim
from bnkit.lab.claims import (
    activations,
    complexity,
    covariate_shift,
    final_accuracy,
    independent_layers,
    initialisation,
    jacobians,
    learning_rates,
    placement,
    rounder_cost,
    scale_invariance,
    speed,
)

CLAIMS: tuple[Claim[Any], ...] = (
    speed.CLAIM,
    learning_rates.CLAIM,
    activations.CLAIM,
    initialisation.CLAIM,
    covariate_shift.CLAIM,
    scale_invariance.CLAIM,
    jacobians.CLAIM,
    rounder_cost.CLAIM,
    placement.CLAIM,
    final_accuracy.CLAIM,
    complexity.CLAIM,
    independent_layers.CLAIM,
)
