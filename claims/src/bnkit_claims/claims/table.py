"""The table of all claims, in the order in which they are listed."""

from typing import Any

from bnkit_claims.claims import (
    activations,
    affine,
    complexity,
    cost,
    covariate_shift,
    final_accuracy,
    generative,
    independent_layers,
    initialisation,
    jacobians,
    learning_rates,
    placement,
    pretrained,
    recurrent,
    regularisation,
    robustness,
    rounder_cost,
    run_time,
    scale_invariance,
    small_batches,
    speed,
)
from bnkit_claims.core.claim import Claim

CLAIMS: tuple[Claim[Any], ...] = (
    speed.CLAIM,
    learning_rates.CLAIM,
    activations.CLAIM,
    initialisation.CLAIM,
    regularisation.CLAIM,
    covariate_shift.CLAIM,
    scale_invariance.CLAIM,
    jacobians.CLAIM,
    rounder_cost.CLAIM,
    robustness.CLAIM,
    run_time.CLAIM,
    cost.CLAIM,
    placement.CLAIM,
    pretrained.CLAIM,
    recurrent.CLAIM,
    small_batches.CLAIM,
    generative.CLAIM,
    final_accuracy.CLAIM,
    complexity.CLAIM,
    independent_layers.CLAIM,
    affine.CLAIM,
)
