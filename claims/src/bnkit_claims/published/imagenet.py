"""Published experiments on ImageNet: their figures, and what it would take to run them."""

from bnkit_claims.published.experiment import PublishedExperiment, Quantity

IMAGENET = "ImageNet (LSVRC2012, 150 gigabytes)"


def _listed(
    name: str, title: str, source: str, quantities: tuple[Quantity, ...], needs: str, note: str = ""
) -> PublishedExperiment:
    return PublishedExperiment(name, title, source, quantities, note, needs=needs)


EXPERIMENTS = (
    _listed(
        "paper-inception",
        "Inception with batch norm on ImageNet: steps to 72.2%, and the highest accuracy",
        "Ioffe and Szegedy 2015, section 4.2, figure 3",
        (
            Quantity("Inception, steps to 72.2%", "million", 31.0),
            Quantity("BN-Baseline, steps to 72.2%", "million", 13.3),
            Quantity("BN-x5, steps to 72.2%", "million", 2.1),
            Quantity("BN-x30, steps to 72.2%", "million", 2.7),
            Quantity("Inception, highest accuracy", "%", 72.2),
            Quantity("BN-Baseline, highest accuracy", "%", 72.7),
            Quantity("BN-x5, highest accuracy", "%", 73.0),
            Quantity("BN-x30, highest accuracy", "%", 74.8),
            Quantity("BN-x5-Sigmoid, highest accuracy", "%", 69.8),
        ),
        f"{IMAGENET} and some weeks on a GPU for each of the five networks",
        "Fourteen times fewer steps compares BN-x5, which also has five times the learning rate, "
        "no dropout and a fifth of the weight decay.",
    ),
    _listed(
        "fastai-vgg16",
        "batch norm inserted after the dense layers of a pretrained VGG-16",
        "fast.ai, imagenet_batchnorm.ipynb",
        (
            Quantity("before, validation loss", "nats", 1.5168),
            Quantity("before, validation accuracy", "%", 64.36),
            Quantity("inserted, validation loss", "nats", 4.7634),
            Quantity("inserted, validation accuracy", "%", 63.42),
            Quantity("fine-tuned, validation accuracy", "%", 65.64),
        ),
        f"{IMAGENET} and the pretrained weights of VGG-16",
        "The recipe set gamma to the variance instead of its root, so the insertion was no "
        "identity; `fastai-insertion` shows both in miniature.",
    ),
    _listed(
        "bjorck-resnet110",
        "a residual network of 110 layers on CIFAR-10 at four learning rates",
        "Bjorck et al. 2018, figure 1 (read off the plot)",
        (
            Quantity("plain, learning rate 0.0001, test accuracy", "%", 82.0),
            Quantity("batch norm, learning rate 0.0001, test accuracy", "%", 81.3),
            Quantity("batch norm, learning rate 0.003, test accuracy", "%", 90.4),
            Quantity("batch norm, learning rate 0.1, test accuracy", "%", 93.2),
        ),
        "CIFAR-10 and about a day on a GPU for each run",
    ),
    _listed(
        "wu-johnson-precise",
        "ResNet-50 on ImageNet: moving averages against recalibrated statistics",
        "Wu and Johnson 2021, table 2",
        (
            Quantity("mini-batch 32, moving average, validation error", "%", 23.7),
            Quantity("mini-batch 32, recalibrated, validation error", "%", 23.5),
            Quantity("mini-batch 2, moving average, validation error", "%", 35.5),
            Quantity("mini-batch 2, recalibrated, validation error", "%", 32.0),
        ),
        f"{IMAGENET} and a week on eight GPUs; `bnkit claims small-batches` measures it in small",
    ),
    _listed(
        "renorm-inception",
        "Inception-v3 on ImageNet with batch renormalization",
        "Ioffe 2017, sections 4.1 to 4.3",
        (
            Quantity("batch norm, mini-batches of 32, accuracy", "%", 78.3),
            Quantity("renorm, mini-batches of 32, accuracy", "%", 78.5),
            Quantity("batch norm, micro-batches of 4, accuracy", "%", 74.2),
            Quantity("renorm, micro-batches of 4, accuracy", "%", 76.5),
            Quantity("batch norm, labels in pairs, accuracy", "%", 67.0),
            Quantity("renorm, labels in pairs, accuracy", "%", 78.5),
        ),
        f"{IMAGENET} and 50 workers for some days",
    ),
    _listed(
        "schneider-corruptions",
        "ImageNet-C: ResNet-50 with statistics of the corrupted images",
        "Schneider, Rusak et al. 2020 (mean corruption error, lower is better)",
        (
            Quantity("not adapted", "% mCE", 76.7),
            Quantity("adapted on all images", "% mCE", 62.2),
        ),
        "ImageNet-C (80 gigabytes) and pretrained weights; `bnkit claims robustness` measures it "
        "in small",
    ),
)
