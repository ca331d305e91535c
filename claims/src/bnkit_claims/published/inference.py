"""Udacity's last demonstration: batch statistics where a network answers one image at a time."""

from bnkit_claims.claims.run_time import (
    RunTime,
    answers,
    own_answers,
    share,
    trained,
    whole_test,
    with_population,
)
from bnkit_claims.published.experiment import BySeed, PublishedExperiment, Quantity
from bnkit_claims.published.paired_trainings import LESSON, SINGLE

AFTER_TRAINING = "validation accuracy after training"
OWN = "batch statistics"
MOVING = "moving averages"
WHOLE, SINGLY = "test set as one mini-batch", "200 single images"
MOST = "share of the most frequent of 200 single answers"
POOLED = "population statistics, recalibrated: test set"

QUANTITIES = (
    Quantity(f"{OWN}: {AFTER_TRAINING}", "%", 95.28),
    Quantity(f"{OWN}: {WHOLE}", "%", 95.03),
    Quantity(f"{OWN}: {SINGLY}", "%", 5.0),
    Quantity(f"{OWN}: {MOST}", "%", 100.0),
    Quantity(f"{MOVING}: {AFTER_TRAINING}", "%", 95.78),
    Quantity(f"{MOVING}: {WHOLE}", "%", 95.37),
    Quantity(f"{MOVING}: {SINGLY}", "%", 97.0),
    Quantity(POOLED, "%", None),
)

SETTINGS = RunTime(
    data="mnist",
    networks=(("mlp", 2000, 0.01),),
    init="normal:0.05",
    eps=1e-3,
    momenta=(0.01,),
    batch_size=60,
    population=100,
    examples=200,
    seeds=5,
)


def demonstration(settings: RunTime, seed: int) -> dict[str, float | None]:
    """Return each quantity of the demonstration, in percent, for one trained network."""
    model, drawn = trained(settings, "mlp", seed)
    loaders = drawn.loaders(seed)
    inputs, targets = whole_test(loaders)
    held_out, held_out_targets = whole_test(loaders._replace(test=loaders.held_out))
    few, few_targets = inputs[: settings.examples], targets[: settings.examples]
    moving = answers(model, inputs) == targets
    singly = own_answers(model, few, 1)
    pooled = with_population(settings, model, drawn, seed)
    shares = {
        AFTER_TRAINING: answers(model, held_out) == held_out_targets,
        f"{OWN}: {WHOLE}": own_answers(model, inputs, len(inputs)) == targets,
        f"{OWN}: {SINGLY}": singly == few_targets,
        f"{OWN}: {MOST}": singly == singly.mode().values,
        f"{MOVING}: {WHOLE}": moving,
        f"{MOVING}: {SINGLY}": moving[: settings.examples],
        POOLED: answers(pooled, inputs) == targets,
    }
    found: dict[str, float | None] = {n: round(100 * share(hits), 4) for n, hits in shares.items()}
    after = found.pop(AFTER_TRAINING)  # the lesson trained twice; ours is one network
    return {**found, f"{OWN}: {AFTER_TRAINING}": after, f"{MOVING}: {AFTER_TRAINING}": after}


EXPERIMENT = PublishedExperiment(
    "udacity-inference",
    "a network with batch norm asked with batch statistics, and one image at a time",
    source=LESSON,
    quantities=QUANTITIES,
    note=(
        f"{SINGLE} Two networks were trained there, one for each kind of statistics; ours is "
        "one for each seed, so that both validation accuracies are the same. By moving "
        "averages it does not matter whether images come singly. There all 200 single images were "
        "answered with class 8, and ten of them, 5%, are an 8. With a mini-batch of one each batch "
        "norm gives its beta, whatever the image, so that the answer is that of the biases; it was "
        "8 here with each of five seeds."
    ),
    run=BySeed(demonstration, SETTINGS),
)
