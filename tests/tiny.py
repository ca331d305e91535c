"""A tiny network and its data, in a module that worker processes can import."""

import os
import signal

import torch
from torch import nn

X = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


def build():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def loaders():
    """Two shuffled training batches of 20, and a test batch of 20."""
    order = torch.randperm(40)
    return [(X[i], Y[i]) for i in order.split(20)], [(X[40:], Y[40:])]


class Dying(nn.Module):
    """Ends its process as the system does when memory runs out, but not the one that plans."""

    def __init__(self):
        super().__init__()
        self.layers = build()
        self.born = int(os.environ.get("BNKIT_TEST_PARENT", "0"))

    def forward(self, x):
        if self.training and os.getpid() != self.born:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.layers(x)


class Raising(Dying):
    """Fails as code of one's own may."""

    def forward(self, x):
        if self.training:
            raise RuntimeError("out of luck")
        return self.layers(x)
