"""The table of all claims, in the order in which they are listed."""

from typing import Any

from bnkit.extras import joined
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

CLAIMS: tuple[Claim[Any], ...] = tuple(
    module.CLAIM
    for module in (
        speed,
        learning_rates,
        activations,
        initialisation,
        regularisation,
        covariate_shift,
        scale_invariance,
        jacobians,
        rounder_cost,
        robustness,
        run_time,
        cost,
        placement,
        pretrained,
        recurrent,
        small_batches,
        generative,
        final_accuracy,
        complexity,
        independent_layers,
        affine,
    )
) + tuple(joined("bnkit.claims").values())  # of other distributions, each entry a `Claim`
