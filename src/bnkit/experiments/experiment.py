"""`Experiment`: a network, its twin and their data, drawn by seed; `rehearse` tries all of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bnkit.dataflow import ExampleError, as_call, observe
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
from bnkit.experiments.provenance import array_fingerprint, batch_fingerprint
from bnkit.experiments.results import Side
from bnkit.experiments.settings import Settings
from bnkit.experiments.summary import Recipe
from bnkit.experiments.training import Training, inputs_and_targets, train
from bnkit.observation import on_the_side, preserved_torch_settings
from bnkit.references import blaming, called, reference_to
from bnkit.source_code import own_sources, source_of
from bnkit.surgery import add, plan_addition

AS_BUILT = "as built"  # the activation of a user's own network

Build = Callable[[], nn.Module]


@dataclass(frozen=True)
class Experiment:
    """How to draw a network and its data by seed, and what else decides the numbers.

    `draw(activation)` takes its randomness from the global generators, as `source` does;
    `add_batch_norm(plain, example)` returns the twin, `options` are those of `add` (None where the
    network brings its own batch norm). `description` is for people; `identity` holds source texts
    and fingerprints; `unused` names the settings that change nothing here; `sources` are
    fingerprints of the files of one's own modules, from which every trial must come.
    """

    draw: Callable[[str], nn.Module]
    source: Source
    add_batch_norm: Callable[[nn.Module, Any], nn.Module]
    options: Mapping[str, Any] | None
    activations: tuple[str, ...]
    description: Mapping[str, str]
    identity: Mapping[str, str]
    unused: Sequence[str]
    sources: Mapping[str, str] = field(default_factory=dict)

    def network(self, side: Side, activation: str, seed: int) -> nn.Module:
        """Return one side's network: for each seed both sides begin with the same arrays."""
        plain = self.plain(activation, seed)
        return plain if side == "plain" else self.twin(plain, seed)

    def plain(self, activation: str, seed: int) -> nn.Module:
        """Return the network without batch norm."""
        seed_everything(seed)
        return self.draw(activation)

    def twin(self, plain: nn.Module, seed: int) -> nn.Module:
        """Return a copy of a network that `plain` gave for this seed, with batch norm added."""
        return self.add_batch_norm(plain, self.example(seed))

    @property
    def recipe(self) -> Recipe:
        """How the twin is made, for the first activation."""
        activation = self.activations[0]
        plain = self.plain(activation, 0)
        if self.options is None:
            return Recipe(str(plain), activation)
        plan = plan_addition(plain, self.example(), **self.options)
        options = (f"{name}={value!r}" for name, value in self.options.items())
        given = "".join(f"    {argument},\n" for argument in ("model", "example", *options))
        return Recipe(
            network=str(plain),
            activation=activation,
            plan=(
                *((edit.layer, edit.kind, edit.action, edit.why) for edit in plan.edits),
                *((left.layer, left.kind, "left alone", left.why) for left in plan.left_alone),
            ),
            code=f"import bnkit\n\nmodel = bnkit.add(\n{given})",
        )

    def loaders(self, seed: int) -> Loaders:
        """Return the data: for each seed both sides see the same batches in the same order."""
        seed_everything(seed)
        return self.source.open_loaders()

    def example(self, seed: int = 0) -> Any:
        """Return the inputs of the first training batch."""
        return inputs_and_targets(first_of(self.loaders(seed).train))[0]


def experiment_of(
    build: Build | str, data: OwnLoaders | str, settings: Settings, *, folder: Path | None = None
) -> Experiment:
    """Return the experiment on a network and data, each a name or the user's own callable.

    Raises ValueError or TypeError for unknown names, for what is neither a name nor a function,
    for a network that does not fit the images, for a named network on data of the user's own,
    and for settings that would change nothing.
    """
    sources = own_sources()  # first: an edit between this and `identity` is noticed
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
    return Experiment(
        draw=draw,
        source=source,
        add_batch_norm=partial(twin, **options),
        options=options if twin is add else None,
        activations=tuple(activations),
        description={"network": name, "data": source.name},
        identity={**source.identity, **code, "network": name, "options": str(options)},
        unused=unused,
        sources=sources,
    )


def rehearse(experiment: Experiment, settings: Settings) -> None:
    """Build both sides, run a training and a test batch through them, and train them for one step.

    Raises ValueError or TypeError, in one sentence, for a network that cannot be normalised or
    trained, a batch that it cannot take, outputs that are not scores of the classes, networks or
    batches that differ when they are drawn again, and code that cannot be sent to a process.
    """
    rate, *_ = settings.learning_rates
    step = Training(rate, settings.optimizer, settings.loss, steps=1, evaluate_every=1)
    for activation in experiment.activations:
        plain = experiment.plain(activation, 0)
        arrays = array_fingerprint(plain)
        with preserved_torch_settings():
            _try_side(experiment, "plain", plain, step)
        # Drawn again, for the twin: under the same seed it must be another object, yet equal.
        again = experiment.plain(activation, 0)
        _check_repeatable(another=again is not plain, equal=array_fingerprint(again) == arrays)
        with preserved_torch_settings():
            _try_side(experiment, "batch norm", experiment.twin(again, 0), step)
    _check_same_batches(experiment)
    _check_portable(experiment)


def _check_choice(build: Any, data: Any) -> None:
    if isinstance(build, nn.Module) or not (isinstance(build, str) or callable(build)):
        raise TypeError(
            f"`build` is a {type(build).__name__}: pass the name of a network, or a function that "
            f"builds yours at each call, as in `lambda: Net()`"
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


def _try_side(experiment: Experiment, side: Side, model: nn.Module, step: Training) -> None:
    loaders = experiment.loaders(0)
    first, test = first_of(loaders.train), first_of(loaders.test)
    _check_batch(model, first, "training", experiment.source.classes)
    _check_batch(model, test, "test", experiment.source.classes)
    with blaming(f"a training step of the {side} network fails"):
        train(model, [first], [test], step)


def _check_batch(model: nn.Module, batch: Any, name: str, classes: int) -> None:
    inputs, targets = inputs_and_targets(batch)
    outputs = _outputs(model, inputs, name)
    if not isinstance(outputs, Tensor) or outputs.dim() != 2:
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"the network returns {shape} for a {name} batch: it must return scores of shape "
            f"(mini-batch, classes)"
        )
    if len(targets) != len(outputs):
        raise ValueError(
            f"a {name} batch has {len(targets)} targets and the network returns {len(outputs)} "
            f"rows: there must be one target for each"
        )
    if classes > outputs.shape[1]:
        raise ValueError(
            f"a target of `data` is {classes - 1} and the network has {outputs.shape[1]} outputs: "
            f"targets must lie from 0 to {outputs.shape[1] - 1}"
        )


def _outputs(model: nn.Module, inputs: Any, name: str) -> Any:
    args, kwargs = as_call(inputs)
    try:
        observe(model, inputs)  # its errors name the layer
        with on_the_side(model):
            return model(*args, **kwargs)
    except ExampleError as error:
        raise ExampleError(f"a {name} batch does not fit the network: {error}") from error


def _check_repeatable(*, another: bool, equal: bool) -> None:
    if not (another and equal):
        raise ValueError(
            "`build` gives another network when it is called again under the same seed, so the "
            "sides could not begin alike: build a new one at each call, and draw its weights from "
            "the global random generators of torch, Python or NumPy"
        )


def _check_same_batches(experiment: Experiment) -> None:
    one, other = (
        [batch_fingerprint(first_of(part)) for part in experiment.loaders(0)] for _ in range(2)
    )
    if one != other:
        raise ValueError(
            "`data` gives other batches when it is called again under the same seed, so the sides "
            "could not see the same: draw from the global random generators of torch, Python or "
            "NumPy, or seed your own in it"
        )


def _check_portable(experiment: Experiment) -> None:
    from loky.backend.reduction import dumps  # noqa: PLC0415  needed only here

    with blaming("`build` and `data` run in other processes, and cannot be sent there"):
        dumps(experiment)
