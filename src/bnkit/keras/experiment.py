"""`KerasExperiment`: a Keras model, its twin and their data or loop, drawn by seed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import keras

from bnkit.experiments.experiment import AS_BUILT
from bnkit.experiments.loaders import Loaders
from bnkit.experiments.metrics import ACCURACY, Metric
from bnkit.experiments.own_loop import OwnLoop, RunningTrial
from bnkit.experiments.results import Side
from bnkit.experiments.summary import Recipe
from bnkit.experiments.trial_logs import Tell
from bnkit.keras.addition import add, plan_addition
from bnkit.keras.batches import pairs_in
from bnkit.keras.compiling import arguments_of, check_plain_training, compiled, compiled_rate
from bnkit.keras.files import open_model
from bnkit.keras.functional import as_functional
from bnkit.keras.graph import compiled_with, is_graph, layers_inside
from bnkit.keras.roles import batch_norms_of, is_batch_norm
from bnkit.keras.settings import Change, KerasSettings
from bnkit.keras.sides import made, without_batch_norms
from bnkit.keras.sources import KerasSource
from bnkit.observation import preserved_random_state
from bnkit.references import called
from bnkit.source_code import modules_beside, own_sources

Build = Callable[[], Any]


@dataclass(frozen=True)
class KerasExperiment:
    """How to draw a Keras model and its data by seed, and what else decides the numbers.

    `build` is a function of the user's or a `.keras` file. `around` are Keras' own settings where
    the comparison is planned, which hold in every process. `loop` is the user's own, `metric` what
    is judged; `sides` are functions and names, by their names. `identity` and `sources` are those
    of `bnkit.experiments.experiment.Experiment`.
    """

    build: Build | str
    source: KerasSource | None
    settings: KerasSettings
    sides: Mapping[Side, str | Change]
    around: Mapping[str, str]
    identity: Mapping[str, str]
    sources: Mapping[str, str] = field(default_factory=dict)
    loop: OwnLoop | None = None
    metric: Metric = ACCURACY

    @property
    def activations(self) -> tuple[str, ...]:
        """What is swept beside the learning rate, by its labels."""
        return (tuple(self.loop.variants) if self.loop else ()) or (AS_BUILT,)

    @property
    def steps(self) -> int | None:
        """The length of a run in mini-batches; None for a loop without a budget."""
        if self.loop is not None:
            return self.loop.steps
        return None if self.source is None else self.source.steps

    def built(self, seed: int) -> "Built":
        """Return the model for this seed, and what it is compiled with."""
        keras.utils.set_random_seed(seed)
        if isinstance(self.build, str):
            model = _drawn_anew(open_model(self.build, compiled=True))
        else:
            model = called(self.build, "build")
            if not isinstance(model, keras.Model):
                raise TypeError(
                    f"`build` returned a {type(model).__name__}: it must return a Keras model"
                )
        if self.loop is None:
            check_plain_training(model)
        arguments = arguments_of(model, self.settings, own_loop=self.loop is not None)
        if not is_graph(model):
            model = as_functional(model, self._example(seed))
        elif not model.built:
            model(self._example(seed))  # which draws its weights
        return Built(model, arguments)

    def side(self, side: Side, built: "Built", seed: int) -> Any:
        """Return one side of a model that `built` gave for this seed, not compiled."""
        brings = bool(batch_norms_of(built.model))
        keras.utils.set_random_seed(seed)  # biases that come back are drawn
        if side == "batch norm" and brings:
            return built.model
        plain = without_batch_norms(built.model) if brings else built.model
        keras.utils.set_random_seed(seed)  # a function of the user's may draw

        def twin() -> Any:
            return built.model if brings else add(plain, **self.settings.of_batch_norm)

        return made(self.sides[side], plain, twin)

    def network(self, side: Side, seed: int, learning_rate: float | None) -> Any:
        """Return one side, compiled as it was built: for each seed all begin with the same arrays.

        `learning_rate` None is that of the optimizer.
        """
        built = self.built(seed)
        return compiled(self.side(side, built, seed), built.arguments, learning_rate)

    def loaders(self, seed: int) -> Loaders:
        """Return the data: for each seed all sides see the same."""
        if self.source is None:
            raise ValueError("there is no `data`: `train` has its own")
        keras.utils.set_random_seed(seed)
        return self.source.open_loaders()

    def running(
        self, side: Side, activation: str, seed: int, learning_rate: float, *, tell: Tell | None
    ) -> RunningTrial:
        """Return what a loop of the user's own is given; in the rehearsal nothing is told."""
        assert self.loop is not None
        return RunningTrial(
            self.loop,
            side,
            seed,
            {"learning_rate": learning_rate, **self.loop.swept(activation)},
            open_loaders=None if self.source is None else partial(self._own_loaders, seed),
            metric=None if tell is None else self.metric,
            rehearsal=tell is None,
            tell=tell or (lambda _step, _numbers: None),
        )

    @property
    def recipe(self) -> Recipe:
        """How the twin is made."""
        built = self.built(0)
        plain = self.side("plain", built, 0)
        shown: list[str] = []
        plain.summary(print_fn=lambda text, **_: shown.append(text))
        network = "\n".join(shown)
        if batch_norms_of(built.model):
            return Recipe(network, self.activations[0])
        options = self.settings.of_batch_norm
        plan = plan_addition(plain, **options)
        rows = [(e.layer, e.kind, e.action, e.why) for e in plan.edits]
        rows += [(e.layer, e.kind, "left alone", e.why) for e in plan.left_alone]
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        code = f"import bnkit.keras as bnk\n\nmodel = bnk.add(model, {given})"
        return Recipe(network, self.activations[0], tuple(rows), code)

    def with_sources(self) -> "KerasExperiment":
        """Return it with all modules of one's own that are loaded by now, as part of its identity.

        Those are of its identity that lie beside the functions that are compared.
        """
        sources = {**own_sources(), **self.sources}
        functions = [f for f in (self.build, self.loop and self.loop.function) if callable(f)]
        opens = [] if self.source is None else [self.source.open_loaders]
        modules = modules_beside(*functions, *opens)
        identity = {f"module {name}": sources[name] for name in modules if name in sources}
        return replace(self, sources=sources, identity={**self.identity, **identity})

    def learning_rates(self) -> tuple[tuple[float, float | None], ...]:
        """Return those of the sweep, each with what is set: None where the model brings it."""
        given = self.settings.learning_rates
        if self.loop is not None:
            return tuple((rate, None) for rate in given or ())
        own = None if given is not None else compiled_rate(self.built(0).arguments)
        if own is not None:
            return ((own, None),)
        rates = self.settings.shared.learning_rates if given is None else given
        return tuple((rate, rate) for rate in rates)

    def _own_loaders(self, seed: int) -> tuple[Any, Any]:
        with preserved_random_state():
            found = self.loaders(seed)
        return found.train, found.held_out

    def _example(self, seed: int) -> Any:
        """Return the inputs of the first mini-batch, for a model that is built by its first call.

        `as_functional` takes several arguments in a tuple; Keras gives a model its inputs as one.
        """
        if self.source is None:
            raise ValueError(
                "`build` returned a model that is not built, and there is no `data` to build it "
                "on: begin it with a keras.Input(shape)"
            )
        with preserved_random_state():
            train = self.loaders(seed).train
            inputs, _, _ = next(pairs_in(train, self.settings.batch_size))
        return inputs


@dataclass(frozen=True)
class Built:
    """A Sequential or Functional model, and the arguments with which it is to be compiled."""

    model: Any
    arguments: Mapping[str, Any]


def _drawn_anew(model: Any) -> Any:
    """Return a copy of a model from a file with new initial values, compiled as it was.

    Layers without trainable weights keep theirs, as frozen ones do and those that scale inputs.
    """
    copy = keras.models.clone_model(model)
    for old, new in zip(layers_inside(model), layers_inside(copy), strict=True):
        own = [layer for layer in layers_inside(old) if layer is not old]
        if own or not old.weights:
            continue
        redrawn = old.trainable_weights or (is_batch_norm(old) and old.trainable)
        if not redrawn:
            new.set_weights([keras.ops.convert_to_numpy(weight) for weight in old.weights])
            new.trainable = old.trainable
    if not model.compiled:
        return copy
    optimizer = type(model.optimizer).from_config(model.optimizer.get_config())  # without state
    return compiled(copy, {**compiled_with(model), "optimizer": optimizer}, None)
