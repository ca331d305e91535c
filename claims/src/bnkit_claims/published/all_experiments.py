"""The table of all published experiments, in the order in which they are listed."""

from bnkit_claims.published import (
    dlology_in_keras,
    fastai,
    imagenet,
    inference,
    percentiles,
    reading_pixels,
)
from bnkit_claims.published.experiment import PublishedExperiment
from bnkit_claims.published.paired_trainings import DLOLOGY, PAPER, UDACITY

EXPERIMENTS: tuple[PublishedExperiment, ...] = (
    *UDACITY,
    inference.EXPERIMENT,
    *DLOLOGY,
    *dlology_in_keras.EXPERIMENTS,
    PAPER,
    percentiles.EXPERIMENT,
    fastai.EXPERIMENT,
    reading_pixels.EXPERIMENT,
    *imagenet.EXPERIMENTS,
)
