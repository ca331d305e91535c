"""How near generated images come to the data: the Fréchet distance in a classifier's features."""

import torch
from torch import Tensor, nn


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
    root = _root(a)
    mixed = torch.linalg.eigvalsh(root @ b @ root).clamp(min=0).sqrt().sum()
    gap = (first.mean(0) - second.mean(0)).square().sum()
    return float((gap + a.trace() + b.trace() - 2 * mixed).clamp(min=0))


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root
