"""Ioffe and Szegedy 2015, section 4.1: three sigmoid layers on MNIST, 50,000 steps."""

from bnkit.experiments.settings import Settings
from bnkit_claims.published.paired import PLOT_ONLY, paired

EXPERIMENTS = (
    paired(
        "paper-mnist",
        "three hidden layers of 100 sigmoid units, 50,000 steps of 60 examples",
        source="Ioffe and Szegedy 2015, section 4.1, figure 1a",
        network="mlp",
        settings=Settings(
            learning_rates=[0.1],
            activations=["sigmoid"],
            init="normal:0.05",
            optimizer="sgd",
            batch_size=60,
            steps=50_000,
            evaluate_every=500,
        ),
        plain=PLOT_ONLY,
        batch_norm=PLOT_ONLY,
        note=(
            "The paper shows curves: batch norm above plain throughout, and its distributions "
            "stable (figure 1b, c: `bnkit claims internal-covariate-shift`). It states neither the "
            "learning rate nor the standard deviation of the weights; 0.1 and 0.05 are ours. Its "
            "images are binary, ours are grey."
        ),
    ),
)
