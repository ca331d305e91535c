"""`Subject`: what is compared, a network with its twin and its data, ready to be drawn by seed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from bnkit.experiments import data as data_sets
from bnkit.experiments.initialisation import initialise_
from bnkit.experiments.loaders import (
    Loaders,
    OwnLoaders,
    Source,
    first_of,
    named_source,
    own_source,
    seed_everything,
)
from bnkit.experiments.networks import network as network_named
from bnkit.experiments.records import Side
from bnkit.experiments.settings import Settings
from bnkit.experiments.training import inputs_and_targets
from bnkit.references import called, reference_to
from bnkit.source_code import source_of
from bnkit.surgery import add

AS_BUILT = "as built"  # stands for the activation of a network of the user's own

Build = Callable[[], nn.Module]


@dataclass(frozen=True)
class Subject:
    """How to draw a network and its data by seed, and what else decides the numbers.

    `draw(activation)` takes its randomness from the global generators, as `source` does;
    `add_batch_norm(plain, example)` returns the twin. `description` is for people; `identity`
    holds source texts and fingerprints; `unused` names the settings that change nothing here.
    """

    draw: Callable[[str], nn.Module]
    source: Source
    add_batch_norm: Callable[[nn.Module, Any], nn.Module]
    activations: tuple[str, ...]
    description: Mapping[str, str]
    identity: Mapping[str, str]
    unused: Sequence[str]

    def network(self, side: Side, activation: str, seed: int) -> nn.Module:
        """Return one side's network: for each seed both sides begin with the same arrays."""
        seed_everything(seed)
        plain = self.draw(activation)
        return plain if side == "plain" else self.add_batch_norm(plain, self.example(seed))

    def loaders(self, seed: int) -> Loaders:
        """Return the data: for each seed both sides see the same batches in the same order."""
        seed_everything(seed)
        return self.source.open_loaders()

    def example(self, seed: int = 0) -> Any:
        """Return the inputs of the first training batch."""
        return inputs_and_targets(first_of(self.loaders(seed).train))[0]


def subject_of(
    build: Build | str, data: OwnLoaders | str, settings: Settings, *, folder: Path | None = None
) -> Subject:
    """Return the subject of a network and data, each a name or the user's own callable.

    Raises ValueError or TypeError for unknown names, for what is neither a name nor a function,
    for a network that does not fit the images, for a named network on data of the user's own,
    and for settings that would change nothing.
    """
    _check_choice(build, data)
    unused = _unused(build, data, settings)
    if isinstance(data, str):
        source = named_source(data, settings, folder=folder)
    else:
        source = own_source(data, settings)
    if isinstance(build, str):
        name, code = build, {}
        draw = partial(_draw_named, build, source.name, settings, folder)
        twin, activations = network_named(build).with_batch_norm or add, settings.activations
    else:
        name, code = reference_to(build), {"source": source_of(build)}
        draw, twin, activations = partial(_draw_own, build, settings.init), add, (AS_BUILT,)
    options = {name: getattr(settings, name) for name in ("placement", "momentum", "eps")}
    return Subject(
        draw=draw,
        source=source,
        add_batch_norm=partial(twin, **options),
        activations=tuple(activations),
        description={"network": name, "data": source.name},
        identity={**source.identity, **code, "network": name, "options": str(options)},
        unused=unused,
    )


def _check_choice(build: Any, data: Any) -> None:
    if isinstance(build, nn.Module) or not (isinstance(build, str) or callable(build)):
        raise TypeError(
            f"`build` is a {type(build).__name__}: pass the name of a network, or a function that "
            f"builds yours anew at each call, as in `lambda: Net()`"
        )
    if not (isinstance(data, str) or callable(data)):
        raise TypeError(
            f"`data` is a {type(data).__name__}: pass the name of a data set, or a function that "
            f"returns (train, test), two iterables of batches"
        )
    if isinstance(build, str) and not isinstance(data, str):
        raise ValueError(  # noqa: TRY004  the pair is wrong, not a type
            f"`build` is the name {build!r} and `data` is your own: a named network needs a named "
            f"data set, so pass a function that builds yours"
        )


def _unused(build: Build | str, data: OwnLoaders | str, settings: Settings) -> Sequence[str]:
    of_network = [] if isinstance(build, str) else ["hidden", "activations"]
    of_data = [] if isinstance(data, str) else ["batch_size", "shuffle"]
    for name in of_network + of_data:
        value = getattr(settings, name)
        if value != getattr(Settings, name):
            own = "`build`" if name in of_network else "`data`"
            raise ValueError(f"`{name}` is {value!r}, and {own} is your own, which decides that")
    return of_network + of_data


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


def _draw_own(build: Build, init: str, _activation: str) -> nn.Module:
    model = called(build, "build")
    if not isinstance(model, nn.Module):
        raise TypeError(f"`build` returned a {type(model).__name__}: it must return a torch module")
    if any(map(is_lazy, model.parameters())):
        raise ValueError(
            "`build` returned a network with lazy layers, which have no arrays to begin with: run "
            "one mini-batch through it in `build`"
        )
    initialise_(model, init, generator=torch.default_generator)
    return model
