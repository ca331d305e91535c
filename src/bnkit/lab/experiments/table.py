"""The table of all published experiments, in the order in which they are listed."""

from bnkit.lab.experiments import (
    dlology,
    fastai,
    imagenet,
    inference,
    paper,
    recurrent,
    udacity,
)
from bnkit.lab.experiments.experiment import Experiment

EXPERIMENTS: tuple[Experiment, ...] = (
    *udacity.EXPERIMENTS,
    inference.EXPERIMENT,
    *dlology.EXPERIMENTS,
    *paper.EXPERIMENTS,
    fastai.EXPERIMENT,
    *recurrent.EXPERIMENTS,
    *imagenet.EXPERIMENTS,
)
