"""`Subject`: what is compared, a network with its twin and its data, ready to be drawn by seed."""

import random
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from bnkit.lab import data as data_sets
from bnkit.lab import fingerprints
from bnkit.lab.initialisation import initialise_
from bnkit.lab.networks import network as network_named
from bnkit.lab.records import Side
from bnkit.lab.references import called
from bnkit.lab.settings import Settings
from bnkit.lab.training import inputs_and_targets
from bnkit.surgery import add

AS_BUILT = "as built"  # stands for the activation of a network of the user's own

Build = Callable[[], nn.Module]
OwnLoaders = Callable[[], tuple[Iterable[Any], Iterable[Any]]]


class Loaders(NamedTuple):
    """Batches to train on, to measure on along the way, and to measure on at the end."""

    train: Iterable[Any]
    held_out: Iterable[Any]
    test: Iterable[Any]


@dataclass(frozen=True)
class Subject:
    """How to draw a network and its data by seed, and what else decides the numbers.

    `draw(activation)` and `open_loaders()` take their randomness from the global generators;
    `add_batch_norm(plain, example)` returns the twin. `description` is for people; `identity`
    holds source texts and fingerprints; `steps_per_epoch` is None for a loader without length.
    """

    draw: Callable[[str], nn.Module]
    open_loaders: Callable[[], Loaders]
    add_batch_norm: Callable[[nn.Module, Any], nn.Module]
    activations: tuple[str, ...]
    description: Mapping[str, str]
    identity: Mapping[str, str]
    steps_per_epoch: int | None

    def network(self, side: Side, activation: str, seed: int) -> nn.Module:
        """Return one side's network: for each seed both sides begin with the same arrays."""
        seed_everything(seed)
        plain = self.draw(activation)
        return plain if side == "plain" else self.add_batch_norm(plain, self.example(seed))

    def loaders(self, seed: int) -> Loaders:
        """Return the data: for each seed both sides see the same batches in the same order."""
        seed_everything(seed)
        return self.open_loaders()

    def example(self, seed: int = 0) -> Any:
        """Return the inputs of the first training batch."""
        for batch in self.loaders(seed).train:
            return inputs_and_targets(batch)[0]
        raise ValueError("`data` gives no training batch: there is nothing to train on")


def seed_everything(seed: int) -> None:
    """Set the global generators of torch, Python and NumPy, from which people's code draws."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  the generator that loaders of other people use


def subject_of(
    build: Build | str, data: OwnLoaders | str, settings: Settings, *, folder: Path | None = None
) -> Subject:
    """Return the subject of a network and data, each a name or the user's own callable.

    Raises ValueError for unknown names, for a network that does not fit the images, and for a
    named network on data of the user's own, whose classes it cannot know.
    """
    if isinstance(build, str) and not isinstance(data, str):
        raise ValueError(  # noqa: TRY004  the pair is wrong, not a type
            f"`build` is the name {build!r} and `data` is your own: a named network needs a named "
            f"data set, so pass a function that builds yours"
        )
    opened = _named_data(data, settings, folder) if isinstance(data, str) else _own_data(data)
    open_loaders, steps_per_epoch, of_data = opened
    if isinstance(build, str):
        draw = partial(_draw_named, build, str(data), settings, folder)
        twin, activations = network_named(build).with_batch_norm or add, settings.activations
    else:
        draw, twin, activations = partial(_draw_own, build, settings.init), add, (AS_BUILT,)
    options = {name: getattr(settings, name) for name in ("placement", "momentum", "eps")}
    source = {} if isinstance(build, str) else {"source": fingerprints.source_of(build)}
    return Subject(
        draw=draw,
        open_loaders=open_loaders,
        add_batch_norm=partial(twin, **options),
        activations=tuple(activations),
        description={"network": _name(build), "data": _name(data)},
        identity={**of_data, **source, "network": _name(build), "options": str(options)},
        steps_per_epoch=steps_per_epoch,
    )


Opened = tuple[Callable[[], Loaders], int | None, dict[str, str]]


def _named_data(data: str, settings: Settings, folder: Path | None) -> Opened:
    examples = data_sets.load(data, folder=folder)
    open_loaders = partial(_open_named, data, settings, folder)
    identity = {
        "examples": examples.fingerprint,
        "batches": f"{settings.batch_size}, shuffled: {settings.shuffle}",
    }
    return open_loaders, len(examples.train) // settings.batch_size, identity


def _own_data(loaders: OwnLoaders) -> Opened:
    open_loaders = partial(_open_own, loaders)
    seed_everything(0)
    train, test, _ = open_loaders()
    examples = fingerprints.of_batches(train, test)
    identity = {"loaders": fingerprints.source_of(loaders), "examples": examples}
    return open_loaders, _length(train), identity


def _length(batches: Iterable[Any]) -> int | None:
    try:
        return len(batches) if isinstance(batches, Sized) else None
    except TypeError:  # a DataLoader over a stream of examples
        return None


def _name(thing: Callable[[], Any] | str) -> str:
    if isinstance(thing, str):
        return thing
    module = getattr(thing, "__module__", type(thing).__module__)
    return f"{module}:{getattr(thing, '__qualname__', type(thing).__name__)}"


def _draw_named(
    network: str, data: str, settings: Settings, folder: Path | None, activation: str
) -> nn.Module:
    examples = data_sets.load(data, folder=folder)
    build = network_named(network).build
    model = build(
        examples.input_shape, examples.classes, activation=activation, hidden=settings.hidden
    )
    initialise_(model, settings.init, generator=torch.default_generator)
    return model


def _open_named(data: str, settings: Settings, folder: Path | None) -> Loaders:
    examples = data_sets.load(data, folder=folder)
    if settings.shuffle:
        generator = torch.Generator().manual_seed(torch.initial_seed())
        train = data_sets.batches(examples.train, settings.batch_size, generator=generator)
    else:
        train = data_sets.ordered_batches(examples.train, settings.batch_size)
    held_out, test = (_whole(part) for part in (examples.held_out, examples.test))
    return Loaders(train, held_out, test)


def _whole(examples: data_sets.Examples) -> list[tuple[torch.Tensor, torch.Tensor]]:
    inputs, targets = (torch.split(part, 1000) for part in (examples.inputs, examples.targets))
    return list(zip(inputs, targets, strict=True))


def _draw_own(build: Build, init: str, _activation: str) -> nn.Module:
    model = called(build, "build")
    if not isinstance(model, nn.Module):
        raise TypeError(f"`build` returned a {type(model).__name__}: it must return a torch module")
    initialise_(model, init, generator=torch.default_generator)
    return model


def _open_own(loaders: OwnLoaders) -> Loaders:
    found = called(loaders, "data")
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise TypeError(
            f"`data` returned a {type(found).__name__}: it must return (train, test), two "
            f"iterables of batches"
        )
    train, test = found
    return Loaders(train, test, test)
