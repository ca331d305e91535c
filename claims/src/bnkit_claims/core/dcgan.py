"""A small DCGAN: its networks, a step of their training, and how close samples are to the data."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnkit.observation import evaluating


def generator(side: int, *, width: int, noise: int, batch_norm: bool) -> nn.Sequential:
    """Return the network from noise (N, noise) to images (N, 1, side, side) within ±1.

    After Radford et al. 2016, section 3: batch norm everywhere but at the output. `width` feature
    maps at half of the side, a multiple of 4, and twice as many at a quarter of it.

    >>> make = generator(8, width=4, noise=5, batch_norm=True)
    >>> make(torch.randn(3, 5)).shape
    torch.Size([3, 1, 8, 8])
    """
    base = side // 4
    return _drawn(
        nn.Linear(noise, 2 * width * base**2),
        nn.Unflatten(1, (2 * width, base, base)),
        *_normalised(2 * width, batch_norm),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
        *_normalised(width, batch_norm),
        nn.ReLU(),
        nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1),
        nn.Tanh(),
    )


def discriminator(side: int, *, width: int, batch_norm: bool) -> nn.Sequential:
    """Return the network from images (N, 1, side, side) to scores (N, 1), high for real ones.

    After Radford et al. 2016, section 3: batch norm everywhere but at the input layer.

    >>> discriminator(8, width=4, batch_norm=True)(torch.randn(3, 1, 8, 8)).shape
    torch.Size([3, 1])
    """
    return _drawn(
        nn.Conv2d(1, width, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        *_normalised(2 * width, batch_norm),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(2 * width * (side // 4) ** 2, 1),
    )


def _normalised(channels: int, batch_norm: bool) -> Sequence[nn.Module]:
    return [nn.BatchNorm2d(channels)] if batch_norm else []


def _drawn(*layers: nn.Module) -> nn.Sequential:
    """Return the layers with the weights that Radford et al. draw: normal, std 0.02."""
    network = nn.Sequential(*layers)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.dim() > 1:  # not gamma
            nn.init.normal_(parameter, std=0.02)
    return network


class AdversarialStep:
    """One step of each network: the discriminator's, then the generator's (non-saturating)."""

    def __init__(
        self,
        make: nn.Module,
        doubt: nn.Module,
        *,
        noise: int,
        learning_rate: float,
        beta1: float = 0.5,
    ) -> None:
        self.make, self.doubt, self.noise = make, doubt, noise
        self.of_make, self.of_doubt = (
            torch.optim.Adam(part.parameters(), lr=learning_rate, betas=(beta1, 0.999))
            for part in (make, doubt)
        )

    def __call__(self, real: Tensor) -> None:
        """Train on real images (N, 1, H, W) within ±1 and on as many that are made."""
        made = self.make(torch.randn(len(real), self.noise))
        # Detached: this loss trains the discriminator alone. The generator's loss below leaves
        # gradients in the discriminator, too, which the next step clears.
        self.of_doubt.zero_grad()
        loss = _taken_for(self.doubt(real), 1.0) + _taken_for(self.doubt(made.detach()), 0.0)
        torch.autograd.backward(loss)
        self.of_doubt.step()
        self.of_make.zero_grad()
        torch.autograd.backward(_taken_for(self.doubt(made), 1.0))
        self.of_make.step()


def _taken_for(scores: Tensor, real: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, real))


@torch.no_grad()
def sample(make: nn.Module, count: int, noise: int) -> Tensor:
    """Return images (count, 1, H, W) in [0, 1], made with running statistics."""
    with evaluating(make):
        images: Tensor = make(torch.randn(count, noise))
    return (images + 1) / 2


class SampleMeasure:
    """Compares images with `real` ones in the features of a classifier, those of its last layer.

    `classifier` ends in a linear layer; images are (N, C, H, W), as those that it was trained on.
    """

    def __init__(self, classifier: nn.Sequential, real: Tensor) -> None:
        self.hidden, self.head = classifier[:-1], classifier[-1]
        self.real = self._features(real)

    def distance(self, images: Tensor) -> float | None:
        """Return the squared Fréchet distance; None where features are not finite."""
        features = self._features(images)
        return frechet(features, self.real) if features.isfinite().all() else None

    @torch.no_grad()
    def classes(self, images: Tensor, *, share: float = 0.02) -> int:
        """Return how many classes the classifier finds in at least this share of the images."""
        found: Tensor = self.head(self._features(images).to(images.dtype)).argmax(1)
        return int((found.bincount() >= share * len(images)).sum())

    @torch.no_grad()
    def _features(self, images: Tensor) -> Tensor:
        features: Tensor = self.hidden(images)
        return features.double()


def frechet(first: Tensor, second: Tensor) -> float:
    """Return the squared Fréchet distance between normal distributions fitted to (N, D) each.

    |m − n|² + tr(A + B − 2 (AB)^½), Heusel et al. 2017, equation 6. The trace of the root is the
    sum of the roots of the eigenvalues of A^½ B A^½, which is symmetric.

    >>> line = torch.arange(5.0).double()[:, None]
    >>> round(frechet(line, line + 3), 6)
    9.0
    """
    a, b = (values.T.cov().reshape(values.shape[1], -1) for values in (first, second))
    root = _root(a)  # A^½
    # A^½ B A^½ is symmetric up to rounding, which can make its zero eigenvalues slightly negative.
    mixed = torch.linalg.eigvalsh(root @ b @ root).clamp(min=0).sqrt().sum()
    gap = (first.mean(0) - second.mean(0)).square().sum()
    return float((gap + a.trace() + b.trace() - 2 * mixed).clamp(min=0))


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root
