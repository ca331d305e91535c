"""Published trainings of one network with and without batch norm, from a lesson, a post, a paper.

Udacity's lesson: eighteen trainings of a small dense network, and a deep conv net; settings and
printed outcomes are those of the notebook's cells. Each is one unseeded run, the plain network
trained first, on other batches than its twin. TensorFlow's decay 0.99 is torch's momentum 0.01.
DLology's post: three trainings of a small conv net, batch norm on every layer. Ioffe and Szegedy
2015, section 4.1: three sigmoid layers on MNIST, 50,000 steps.
"""

from collections.abc import Callable

from bnkit.experiments.settings import Settings
from bnkit_claims.core.cases import Repetition
from bnkit_claims.published.experiment import (
    Measured,
    PairedTraining,
    PublishedExperiment,
    accuracies,
)

LESSON = "Udacity, Deep Learning, Batch_Normalization_Lesson.ipynb"
SINGLE = "The published figures are of one unseeded run."

# number: standard deviation, learning rate, activation, steps, then accuracies in percent: plain on
# validation and test, batch norm on validation and test.
LESSON_RUNS: dict[int, tuple[float, float, str, int, float, float, float, float]] = {
    1: (0.05, 0.01, "relu", 50_000, 97.30, 97.48, 98.32, 98.03),
    2: (0.05, 0.01, "relu", 2_000, 82.86, 82.62, 95.78, 95.25),
    3: (0.05, 0.01, "sigmoid", 50_000, 83.44, 82.71, 97.56, 97.32),
    4: (0.05, 1.0, "relu", 50_000, 9.58, 9.80, 98.44, 98.34),
    5: (0.05, 1.0, "relu", 50_000, 9.86, 10.10, 98.40, 98.22),
    6: (0.05, 1.0, "sigmoid", 50_000, 97.84, 97.52, 98.38, 98.12),
    7: (0.05, 1.0, "sigmoid", 2_000, 92.08, 92.27, 95.18, 94.63),
    8: (0.05, 2.0, "relu", 50_000, 9.86, 10.10, 98.28, 98.27),
    9: (0.05, 2.0, "sigmoid", 50_000, 97.96, 97.82, 98.04, 97.82),
    10: (0.05, 2.0, "sigmoid", 2_000, 93.84, 93.60, 95.74, 95.24),
    11: (5.0, 0.01, "relu", 50_000, 9.58, 9.80, 79.46, 79.90),
    12: (5.0, 0.01, "sigmoid", 50_000, 22.02, 22.70, 85.92, 85.27),
    13: (5.0, 1.0, "relu", 50_000, 11.26, 11.35, 92.44, 92.08),
    14: (5.0, 1.0, "sigmoid", 50_000, 89.70, 89.57, 95.70, 95.05),
    15: (5.0, 2.0, "relu", 50_000, 9.58, 9.80, 91.28, 90.54),
    16: (5.0, 2.0, "sigmoid", 50_000, 90.94, 90.66, 96.14, 95.83),
    17: (5.0, 1.0, "relu", 50_000, 11.26, 11.35, 9.88, 10.10),
    18: (5.0, 2.0, "relu", 50_000, 9.58, 9.80, 9.86, 10.10),
}

# Two cells of the notebook repeat another with new draws; over seeds they are one experiment.
AGAIN = {5: 4, 17: 13, 18: 15}
NOTES = {
    4: "The notebook ran it twice (udacity-5): both times the plain network collapsed.",
    13: "Run twice there: batch norm reached 92%, then stayed at 10% (udacity-17), so only "
    "a success rate says anything.",
    15: "Run twice there: batch norm reached 91%, then stayed at 10% (udacity-18), so only "
    "a success rate says anything.",
}


def _of_lesson(number: int) -> PublishedExperiment:
    std, rate, activation, steps, plain, plain_test, normed, normed_test = LESSON_RUNS[number]
    again = AGAIN.get(number)
    note = NOTES.get(number, "") or (f"The same setting as udacity-{again}." if again else "")
    return PublishedExperiment(
        f"udacity-{number}",
        f"std {std:g}, learning rate {rate:g}, {activation}, {steps:,} steps",
        source=LESSON,
        quantities=accuracies((plain, plain_test), (normed, normed_test)),
        note=f"{SINGLE} {note}".strip(),
        run=PairedTraining(
            "mlp",
            Settings(
                learning_rates=[rate],
                activations=[activation],
                init=f"normal:{std:g}",
                optimizer="sgd",
                batch_size=60,
                seeds=5,
                momentum=0.01,
                eps=1e-3,
                steps=steps,
                evaluate_every=steps // 100 if steps == 50_000 else 50,
            ),
        ),
    )


def _deep_conv_net() -> PublishedExperiment:
    return PublishedExperiment(
        "udacity-conv",
        "19 convolutions, Adam, learning rate 0.002, 800 steps",
        source="Udacity, Deep Learning, Batch_Normalization_Exercises.ipynb",
        quantities=accuracies((11.42, 12.19), (97.46, 97.45)),
        note=f"{SINGLE} The text promises under 15% without batch norm and over 90% with it.",
        run=PairedTraining(
            "udacity",
            Settings(
                learning_rates=[0.002],
                activations=["relu"],
                init="glorot",
                optimizer="adam",
                loss="sigmoid-cross-entropy",
                batch_size=64,
                momentum=0.01,
                eps=1e-3,
                steps=800,
                evaluate_every=100,
                training_mode_accuracy=True,
            ),
        ),
    )


POST = "DLology, “One simple trick to train Keras model faster with batch normalization”"
PLOTS = "The post shows plots and no numbers; it validates on the test set and does not shuffle."

# number: learning rate, activation, what the post says of its plot.
POST_RUNS = {
    1: (0.001, "sigmoid", "Batch norm slightly above plain."),
    2: (0.01, "sigmoid", "The plain network fails to learn, batch norm learns."),
    3: (0.01, "relu", "Both learn, batch norm with the higher validation accuracy."),
}


def of_post(
    number: int, run: Callable[[Repetition], Measured], *, framework: str = "", note: str = ""
) -> PublishedExperiment:
    """Return one training of the post, run by `run`; a `framework` other than torch is named."""
    rate, activation, says = POST_RUNS[number]
    prefix = f"{framework.lower()}-" if framework else ""
    title = f"conv net, Adam, learning rate {rate:g}, {activation}, 3 epochs"
    return PublishedExperiment(
        f"{prefix}dlology-{number}",
        f"{framework}, {title}" if framework else title,
        source=POST,
        quantities=accuracies(),
        note=f"{says} {PLOTS} {note}".strip(),
        run=run,
    )


def _in_torch(number: int) -> PublishedExperiment:
    rate, activation, _ = POST_RUNS[number]
    settings = Settings(
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
    )
    return of_post(number, PairedTraining("dlology", settings))


PAPER = PublishedExperiment(
    "paper-mnist",
    "three hidden layers of 100 sigmoid units, 50,000 steps of 60 examples",
    source="Ioffe and Szegedy 2015, section 4.1, figure 1a",
    quantities=accuracies(),
    note=(
        "The paper shows curves: batch norm above plain throughout, and its distributions "
        "stable (figure 1b, c: `bnkit claims internal-covariate-shift`). It states neither the "
        "learning rate nor the standard deviation of the weights; 0.1 and 0.05 are ours. Its "
        "images are binary, ours are grey."
    ),
    run=PairedTraining(
        "mlp",
        Settings(
            learning_rates=[0.1],
            activations=["sigmoid"],
            init="normal:0.05",
            optimizer="sgd",
            batch_size=60,
            steps=50_000,
            evaluate_every=500,
        ),
    ),
)

UDACITY = (*map(_of_lesson, LESSON_RUNS), _deep_conv_net())
DLOLOGY = tuple(map(_in_torch, POST_RUNS))
