"""The table of all published experiments, in the order in which they are listed."""

from bnkit.lab.experiments import dlology, imagenet, paper, udacity
from bnkit.lab.experiments.experiment import Experiment

EXPERIMENTS: tuple[Experiment, ...] = (
    *udacity.EXPERIMENTS,
    *dlology.EXPERIMENTS,
    *paper.EXPERIMENTS,
    *imagenet.EXPERIMENTS,
)
