"""A small DCGAN: its two networks, with batch norm or without, and a step of their training."""

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
