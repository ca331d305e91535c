"""DLology's Keras post: three trainings of a small conv net, batch norm on every layer."""

from bnkit.experiments.settings import Settings
from bnkit_claims.published.experiment import Experiment
from bnkit_claims.published.paired import PLOT_ONLY, paired

SOURCE = "DLology, “One simple trick to train Keras model faster with batch normalization”"
PLOTS = "The post shows plots and no numbers; it validates on the test set and does not shuffle."

# number: learning rate, activation, what the post says of its plot.
RUNS = {
    1: (0.001, "sigmoid", "Batch norm slightly above plain."),
    2: (0.01, "sigmoid", "The plain network fails to learn, batch norm learns."),
    3: (0.01, "relu", "Both learn, batch norm with the higher validation accuracy."),
}


def _run(number: int) -> Experiment:
    rate, activation, says = RUNS[number]
    return paired(
        f"dlology-{number}",
        f"conv net, Adam, learning rate {rate:g}, {activation}, 3 epochs",
        source=SOURCE,
        network="dlology",
        settings=Settings(
            learning_rates=[rate],
            activations=[activation],
            init="glorot",
            optimizer="adam",
            batch_size=32,
            momentum=0.01,
            eps=1e-3,
            shuffle=False,
            epochs=3,
            evaluate_every=125,
            training_mode_accuracy=True,
        ),
        plain=PLOT_ONLY,
        batch_norm=PLOT_ONLY,
        note=f"{says} {PLOTS}",
    )


EXPERIMENTS = tuple(map(_run, RUNS))
