"""What a model of the zoo is: how to build it, why it is awkward, where batch norm belongs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


def images():
    return torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(0))


def vectors():
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def sequences():
    """Return a mini-batch of sequences, (N, T, C)."""
    return torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Model:
    """A model that is awkward for the reason `why`.

    `before` and `after` hold the paths of the layers that `bnkit.add` changes in the two
    placements; `alone` says of some others why they are left alone, in words of the reason.
    `pickles` is False where torch refuses to pickle the model even without us.
    """

    why: str
    build: Callable[[], nn.Module]
    example: Callable[[], Any] = images
    before: frozenset[str] = frozenset()
    after: frozenset[str] = frozenset()
    alone: Mapping[str, str] = field(default_factory=dict)
    pickles: bool = True

    def seeded(self) -> nn.Module:
        torch.manual_seed(0)
        return self.build()

    def __str__(self) -> str:
        return self.why


CATALOGUE: list[Model] = []


def awkward(why, *, before="", after="", **options):
    """Put a model into the catalogue: a class, or a function that builds one."""

    def register(build):
        places = {"before": frozenset(before.split()), "after": frozenset(after.split())}
        CATALOGUE.append(Model(why, build, **places, **options))
        return build

    return register


class Net(nn.Module):
    """A module whose layers are what `parts` returns, by name."""

    def __init__(self):
        super().__init__()
        for name, part in self.parts().items():
            self.add_module(name, part)


def conv(features_in=4, features_out=4, size=3, **options):
    return nn.Conv2d(features_in, features_out, size, padding=size // 2, **options)


def dense(features_in=4, features_out=4, **options):
    return nn.Linear(features_in, features_out, **options)
