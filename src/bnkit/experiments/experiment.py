"""`Experiment`: a network, its twin and their data or their loop, drawn by seed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from bnkit.batches import Call, as_example
from bnkit.dataflow import as_call, duplicate
from bnkit.dataflow.copying import is_keras_model
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
from bnkit.experiments.metrics import ACCURACY, Metric
from bnkit.experiments.networks import network as network_named
from bnkit.experiments.own_loop import OwnLoop, RunningTrial, listed
from bnkit.experiments.results import SIDES, Side
from bnkit.experiments.settings import OF_THE_BUILT_IN_LOOP, Settings
from bnkit.experiments.sides import (
    Change,
    has_batch_norms,
    made,
    name_of,
    without_batch_norm,
)
from bnkit.experiments.summary import Recipe
from bnkit.experiments.tasks import Judge, inputs_and_targets, reader
from bnkit.norms import batch_norms
from bnkit.observation import preserved_random_state
from bnkit.references import called, reference_to
from bnkit.source_code import modules_beside, own_sources, source_of
from bnkit.surgery import SurgeryError, add, plan_addition

AS_BUILT = "as built"  # the activation of a user's own network

Build = Callable[[], nn.Module]


@dataclass(frozen=True)
class Experiment:
    """How to draw a network and its data by seed, and what else decides the numbers.

    `draw(activation)` takes its randomness from the global generators, as `source` does;
    `add_batch_norm(plain, example)` returns the twin, `options` are those of `add` (None where the
    network brings its own batch norm). `sides` are by their names what `sides.made` takes.
    `description` is for people; `identity` holds source texts and fingerprints; `unused` names the
    settings that change nothing here; `sources` are fingerprints of the files of one's own modules,
    from which every trial must come. `metric` is
    judged.

    With a `loop` of the user's own, `calls` are the first calls of the network, or of its parts by
    their paths, on which the twin is planned; without it that is the first batch.
    """

    draw: Callable[[str], nn.Module]
    source: Source | None
    add_batch_norm: Callable[[nn.Module, Any], nn.Module]
    options: Mapping[str, Any] | None
    activations: tuple[str, ...]
    description: Mapping[str, str]
    identity: Mapping[str, str]
    unused: Sequence[str]
    sources: Mapping[str, str] = field(default_factory=dict)
    metric: Metric = ACCURACY
    judge: Judge | None = None
    loop: OwnLoop | None = None
    calls: Mapping[str, Call] = field(default_factory=dict)
    sides: Mapping[Side, str | Change] = field(
        default_factory=lambda: dict(zip(SIDES, SIDES, strict=True))
    )

    def network(self, side: Side, activation: str, seed: int) -> nn.Module:
        """Return one side's network: for each seed both sides begin with the same arrays."""
        return self.side(side, self.built(activation, seed), seed)

    def built(self, activation: str, seed: int) -> nn.Module:
        """Return the network as it is built for this seed."""
        seed_everything(seed)
        return self.draw(activation)

    def side(self, side: Side, built: nn.Module, seed: int) -> nn.Module:
        """Return one side of a network that `built` gave for this seed.

        Of one that brings batch norm, the plain side is what is left without.
        """
        brings, plain = has_batch_norms(built), built
        if brings and side != "batch norm":
            examples = self._examples(built) or {"": self.example(seed, built)}
            seed_everything(seed)  # the biases that come back are drawn
            plain = _with_changed_parts(built, examples, without_batch_norm)
            _check_none_left(plain)
        seed_everything(seed)  # a function of the user's may draw
        change = self.sides.get(side, side)
        return made(side, change, plain, lambda: built if brings else self.twin(plain, seed))

    def plain(self, activation: str, seed: int) -> nn.Module:
        """Return the network without batch norm."""
        return self.network("plain", activation, seed)

    def twin(self, plain: nn.Module, seed: int) -> nn.Module:
        """Return a copy of a network that `plain` gave for this seed, with batch norm added."""
        if not self.calls:
            return self.add_batch_norm(plain, self.example(seed, plain))
        return _with_changed_parts(plain, self._examples(plain), self.add_batch_norm)

    def _examples(self, plain: nn.Module) -> dict[str, Any]:
        return {
            path: as_example(plain.get_submodule(path), call) for path, call in self.calls.items()
        }

    def with_sources(self) -> "Experiment":
        """Return it with all modules of one's own that are loaded by now.

        Those that lie beside the functions that are compared become part of its identity.
        """
        sources = {**own_sources(), **self.sources}
        functions = [self.draw, self.source and self.source.open_loaders]
        beside = modules_beside(*functions, self.loop and self.loop.function)
        modules = {f"module {name}": sources[name] for name in beside if name in sources}
        return replace(self, sources=sources, identity={**self.identity, **modules})

    def swept(self, activation: str) -> Mapping[str, Any]:
        """Return the settings of a loop of the user's own that are swept, by their label."""
        return {} if self.loop is None else self.loop.swept(activation)

    @property
    def recipe(self) -> Recipe:
        """How the twin is made, for the first activation."""
        activation = self.activations[0]
        built = self.built(activation, 0)
        plain = self.side("plain", built, 0)
        if self.options is None or has_batch_norms(built):
            return Recipe(str(plain), activation)
        rows: list[tuple[str, str, str, str]] = []
        code = ["import bnkit", ""]
        for path, example in (self._examples(plain) or {"": self.example(0, plain)}).items():
            plan = plan_addition(plain.get_submodule(path), example, **self.options)
            within = f"{path}.".lstrip(".")
            rows += [(within + e.layer, e.kind, e.action, e.why) for e in plan.edits]
            rows += [(within + e.layer, e.kind, "left alone", e.why) for e in plan.left_alone]
            if plan.edits:
                part = f"model.{path}".rstrip(".")
                options = (f"{name}={value!r}" for name, value in self.options.items())
                code += [f"{part} = bnkit.add(", f"    {part},", "    example,"]
                code += [*(f"    {option}," for option in options), ")"]
        return Recipe(str(plain), activation, tuple(rows), "\n".join(code))

    def loaders(self, seed: int) -> Loaders:
        """Return the data: for each seed both sides see the same batches in the same order."""
        if self.source is None:
            raise ValueError("there is no `data`: `train` has its own")
        seed_everything(seed)
        return self.source.open_loaders()

    @property
    def steps(self) -> int | None:
        """The length of a run in optimizer steps; None for a loop without a budget."""
        if self.loop is not None:
            return self.loop.steps
        return None if self.source is None else self.source.steps

    @property
    def is_own_data(self) -> bool:
        """Whether the data are those of a function of the user's own."""
        return "loaders" in self.identity

    @property
    def classes(self) -> int:
        """How many classes the targets name; 0 without data."""
        return 0 if self.source is None else self.source.classes

    def running_trial(
        self,
        side: Side,
        activation: str,
        seed: int,
        learning_rate: float,
        **options: Any,
    ) -> RunningTrial:
        """Return what a loop of the user's own is given to train one side's network.

        `options` are those of `RunningTrial`; in a rehearsal the metric is not known yet.
        """
        assert self.loop is not None
        return RunningTrial(
            self.loop,
            side,
            seed,
            {"learning_rate": learning_rate, **self.swept(activation)},
            open_loaders=None if self.source is None else partial(self._own_loaders, seed),
            metric=None if options.get("rehearsal") else self.metric,
            **options,
        )

    def _own_loaders(self, seed: int) -> tuple[Any, Any]:
        with preserved_random_state():
            found = self.loaders(seed)
        return found.train, found.held_out

    def example(self, seed: int = 0, model: nn.Module | None = None) -> Any:
        """Return the inputs of the first training batch, as this network takes them."""
        read = inputs_and_targets if model is None else reader(model)
        return read(first_of(self.loaders(seed).train))[0]


def experiment_of(
    build: Build | str,
    data: OwnLoaders | str | None,
    settings: Settings,
    *,
    folder: Path | None = None,
    loop: OwnLoop | None = None,
    example: Any = None,
    version: str = "",
) -> Experiment:
    """Return the experiment on a network and data, each a name or the user's own callable.

    A `loop` of the user's own may do without `data`, and plan the twin on an `example` of its own.
    Raises ValueError or TypeError for unknown names, for what is neither a name nor a function,
    for a network that does not fit the images, for a named network on data of the user's own,
    and for settings that would change nothing.
    """
    sources = own_sources()  # first: an edit between this and `identity` is noticed
    _check_choice(build, data, loop)
    unused = _unused(build, data, settings, loop)
    source: Source | None = None
    if data is None:
        pass
    elif isinstance(data, str):
        source = named_source(data, settings, folder=folder)
    else:
        source = own_source(data, settings, checked=loop is None)
    if isinstance(build, str):
        name, code = build, {}
        draw = partial(_draw_named, build, str(data), settings, folder)
        twin, activations = network_named(build).with_batch_norm or add, settings.activations
    else:
        name, code = reference_to(build), {"source": source_of(build)}
        draw, twin, activations = partial(_draw_own, build, settings.init), add, (AS_BUILT,)
    description = {"network": name, "data": source.name if source else "", "version": version}
    if loop is not None:
        if isinstance(build, str) and loop.variants:
            swept = listed(next(iter(loop.variants.values())))
            raise ValueError(
                f"`sweep` has {swept}, and `build` is the name {build!r}: pass a function that "
                f"builds the network, or leave `sweep` out"
            )
        code |= loop.identity
        description |= {"train": reference_to(loop.function)}
        activations = tuple(loop.variants) or activations
    options = {name: getattr(settings, name) for name in ("placement", "momentum", "eps")}
    sides = {name_of(side): side for side in settings.sides}
    own_sides = {f"side {n}": source_of(side) for n, side in sides.items() if callable(side)}
    return Experiment(
        draw=draw,
        source=source,
        add_batch_norm=partial(twin, **options),
        options=options if twin is add else None,
        sides=sides,
        activations=tuple(activations),
        description={name: value for name, value in description.items() if value},
        identity={
            **(source.identity if source else {}),
            **code,
            **own_sides,
            "network": name,
            "options": str(options),
            "version": version,
        },
        unused=unused,
        sources=sources,
        loop=loop,
        calls={} if example is None else {"": as_call(example)},
    )


def _with_changed_parts(
    model: nn.Module,
    examples: Mapping[str, Any],
    change: Callable[[nn.Module, Any], nn.Module],
) -> nn.Module:
    """Return a copy of `model` with each part changed on its example, by the path of the part.

    A part in which nothing can be changed stays; SurgeryError where that is all of them.
    """
    if set(examples) == {""}:
        return change(model, examples[""])
    twin, refusals = duplicate(model), []
    paths = [*twin.named_modules(remove_duplicate=False)]
    for path, example in examples.items():
        part = twin.get_submodule(path)
        try:
            changed = change(part, example)
        except SurgeryError as error:
            refusals.append(error)
            continue
        for also in [name for name, module in paths if module is part]:
            twin.set_submodule(also, changed)
    if len(refusals) == len(examples):
        raise refusals[0]
    return twin


def _check_none_left(plain: nn.Module) -> None:
    if left := [*batch_norms(plain).layers]:
        raise SurgeryError(
            f"the batch norm {left[0]!r} lies in no part that `train` calls in its rehearsal, so "
            f"it cannot be taken out for the plain side: call all parts before the first report, "
            f"or pass `example`, inputs of the network"
        )


def _check_choice(build: Any, data: Any, loop: OwnLoop | None) -> None:
    if isinstance(build, nn.Module) or not (isinstance(build, str) or callable(build)):
        raise TypeError(
            f"`build` is a {type(build).__name__}: pass the name of a network, or a function that "
            f"builds yours at each call, as in `lambda: Net()`"
        )
    check_data(data, loop, "two iterables of batches")
    if isinstance(build, str) and not isinstance(data, str):
        raise ValueError(  # noqa: TRY004  the pair is wrong, not a type
            f"`build` is the name {build!r} and `data` is your own: a named network needs a named "
            f"data set, so pass a function that builds yours"
        )


def check_data(data: Any, loop: OwnLoop | None, parts: str) -> None:
    """Raise TypeError for `data` that is neither a name nor a function, whose `parts` are such."""
    if data is None and loop is None:
        raise TypeError("`data` is missing: pass it, or a loop of your own that has it, as `train`")
    if not (data is None or isinstance(data, str) or callable(data)):
        raise TypeError(
            f"`data` is a {type(data).__name__}: pass the name of a data set, or a function that "
            f"returns (train, test), {parts}"
        )


def _unused(
    build: Build | str, data: OwnLoaders | str | None, settings: Settings, loop: OwnLoop | None
) -> Sequence[str]:
    decided = {
        "build": [] if isinstance(build, str) else ["hidden", "activations"],
        "data": [] if isinstance(data, str) else ["batch_size", "shuffle"],
        "train": [] if loop is None else [*OF_THE_BUILT_IN_LOOP],
    }
    for argument, names in decided.items():
        for name in names:
            value = getattr(settings, name)
            if value != getattr(Settings, name):
                raise ValueError(
                    f"`{name}` is {value!r}, and `{argument}` is your own, which decides that"
                )
    return [*dict.fromkeys(name for names in decided.values() for name in names)]


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
    if is_keras_model(model):
        raise TypeError(
            f"`build` returned a Keras model ({type(model).__name__}): use bnkit.keras.compare, "
            f"which trains it as it is compiled"
        )
    if not isinstance(model, nn.Module):
        raise TypeError(f"`build` returned a {type(model).__name__}: it must return a torch module")
    if any(map(is_lazy, model.parameters())):
        raise ValueError(
            "`build` returned a network with lazy layers, which have no arrays to begin with: run "
            "one mini-batch through it in `build`"
        )
    initialise_(model, init, generator=torch.default_generator)
    return model
