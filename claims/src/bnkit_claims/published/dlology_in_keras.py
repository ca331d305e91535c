"""DLology's post in its own framework: the same three trainings with Keras, on its backend.

The network is that of the post: three convs of 32, 64 and 64 maps of 3×3, two max poolings, a
dense layer of 64 and one of 10 with softmax; Adam, mini-batches of 32 that are not shuffled, three
epochs.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from bnkit.extras import require
from bnkit_claims.core.cases import Repetition
from bnkit_claims.published.experiment import Measured, PublishedExperiment, measured_of
from bnkit_claims.published.paired_trainings import POST_RUNS, of_post


@dataclass(frozen=True)
class KerasTraining:
    """Runs one of the post's trainings on MNIST by `bnkit.keras.compare`, paired."""

    learning_rate: float
    activation: str
    epochs: int = 3
    seeds: int = 3

    def __call__(self, how: Repetition) -> Measured:
        """Return the accuracies in percent, and the comparison that they are from."""
        require("keras", "an experiment in Keras")
        from bnkit.keras.comparing import plan_comparison  # noqa: PLC0415  seconds, for these only
        from bnkit.keras.settings import KerasSettings  # noqa: PLC0415  as above

        sweep = plan_comparison(
            partial(post_network, self.learning_rate, self.activation),
            "mnist",
            settings=KerasSettings(
                seeds=how.seeds or self.seeds,
                shuffle=False,
                epochs=self.epochs,
                evaluate_every=429,  # a quarter of an epoch of 1,719 mini-batches
            ),
            data_folder=how.folder,
            out=how.out,
            command=f"bnkit reproduce {how.title}",
        )
        return measured_of(sweep.run(**how.running))


def post_network(learning_rate: float, activation: str) -> Any:
    """Return the network of the post with its batch norms, one on every layer, compiled as there.

    The plain one is what is left without them, with biases.
    """
    import keras  # noqa: PLC0415  as above
    from keras import layers  # noqa: PLC0415  as above

    def normalised(layer: Any, function: str) -> list[Any]:
        return [layer, layers.BatchNormalization(), layers.Activation(function)]

    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            *normalised(layers.Conv2D(32, 3, use_bias=False), activation),
            layers.MaxPooling2D(),
            *normalised(layers.Conv2D(64, 3, use_bias=False), activation),
            layers.MaxPooling2D(),
            *normalised(layers.Conv2D(64, 3, use_bias=False), activation),
            layers.Flatten(),
            *normalised(layers.Dense(64, use_bias=False), activation),
            *normalised(layers.Dense(10, use_bias=False), "softmax"),
        ]
    )
    model.compile(
        keras.optimizers.Adam(learning_rate),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def _in_keras(number: int) -> PublishedExperiment:
    rate, activation, _ = POST_RUNS[number]
    return of_post(
        number,
        KerasTraining(rate, activation),
        framework="Keras",
        note="In Keras itself, with momentum 0.99 and epsilon 0.001.",
    )


EXPERIMENTS = tuple(map(_in_keras, POST_RUNS))
