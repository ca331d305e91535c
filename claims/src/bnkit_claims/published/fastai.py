"""fast.ai's insertion of batch norm into a trained VGG, in miniature: trained here, on MNIST."""

from dataclasses import replace

from bnkit_claims.claims.pretrained import (
    CLAIM,
    PLAIN,
    ROOT,
    VARIANCE,
    Pretrained,
    insertion,
)
from bnkit_claims.published.experiment import BySeed, PublishedExperiment, Quantity

STATES = {  # network, and before or after fine-tuning
    "trained": (PLAIN, "before"),
    "inserted by our rule": (ROOT, "before"),
    "inserted by the recipe": (VARIANCE, "before"),
    "fine-tuned after our rule": (ROOT, "after"),
    "fine-tuned after the recipe": (VARIANCE, "after"),
    "trained further without batch norm": (PLAIN, "after"),
}

QUANTITIES = tuple(
    Quantity(f"{state}: test {what}", unit, None)
    for state in STATES
    for what, unit in (("loss", "nats"), ("accuracy", "%"))
)

EPOCH = 859  # mini-batches of 64 in 55,000 images
SETTINGS = replace(
    CLAIM.sizes["mnist"],
    steps=EPOCH,
    fine_tuning_rate=1e-5,
    fine_tuning_steps=EPOCH,
    evaluate_every=EPOCH,
)


def miniature(settings: Pretrained, seed: int) -> dict[str, float | None]:
    """Return loss in nats and accuracy in percent of each state of one network."""
    found = insertion(settings, seed)
    values: dict[str, float | None] = {}
    for state, (network, when) in STATES.items():
        kept = found[network][when]
        values[f"{state}: test loss"] = round(kept["loss"], 6)
        values[f"{state}: test accuracy"] = round(100 * kept["accuracy"], 4)
    return values


EXPERIMENT = PublishedExperiment(
    "fastai-insertion",
    "batch norm inserted after the dense layers of a small VGG trained on MNIST",
    source="fast.ai, imagenet_batchnorm.ipynb",
    quantities=QUANTITIES,
    note=(
        "In miniature: a narrow VGG-11 without dropout, trained here for an epoch, since the "
        "weights of VGG-16 are not at hand; fine-tuned as there, by Adam at 0.00001 for an "
        "epoch of mini-batches of 64, but all layers, and statistics from training data. The "
        "published figures, of VGG-16 on ImageNet, are in `fastai-vgg16`: loss 1.5168 and "
        "64.36% before, 4.7634 and 63.42% inserted by the recipe, 65.64% fine-tuned. The "
        "recipe sets gamma to the variance; our rule, its root, changes nothing."
    ),
    run=BySeed(miniature, SETTINGS),
)
