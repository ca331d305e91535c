"""The table of all published experiments, in the order in which they are listed."""

from bnkit_claims.published import (
    dlology,
    fastai,
    imagenet,
    inference,
    paper,
    recurrent,
    udacity,
)
from bnkit_claims.published.experiment import Experiment

EXPERIMENTS: tuple[Experiment, ...] = (
    *udacity.EXPERIMENTS,
    inference.EXPERIMENT,
    *dlology.EXPERIMENTS,
    *paper.EXPERIMENTS,
    fastai.EXPERIMENT,
    *recurrent.EXPERIMENTS,
    *imagenet.EXPERIMENTS,
)
