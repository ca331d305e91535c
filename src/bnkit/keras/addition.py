"""`add` and `insert`: batch norm where it belongs in a Keras model."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict, Unpack, get_args

import keras
import numpy as np
from keras import layers as L

from bnkit.keras.batches import inputs_in
from bnkit.keras.graph import Call, Graph, check_graph, graphs_of, is_graph, layers_inside
from bnkit.keras.kernels import (
    WEIGHT_LAYERS,
    affine_by,
    array_of,
    arrays_of,
    features_axis,
    tensor_of,
)
from bnkit.keras.observation import calling_instead, infer
from bnkit.keras.plan import Edit, Plan, left
from bnkit.keras.rebuilding import Change, NewLayer, merged, rebuilt
from bnkit.keras.roles import (
    DROPOUTS,
    NORMALISATIONS,
    is_activation,
    objection_to_class,
    objection_to_kind,
    own_activation,
)
from bnkit.keras.verification import Pair, prove_same_function
from bnkit.moments import Moments
from bnkit.norms import NOT_CHOSEN
from bnkit.options import Default, with_options
from bnkit.surgery import SurgeryError
from bnkit.surgery.plan import LeftAlone

Placement = Literal["before_activation", "after_activation"]
Where = Callable[[str, Any], bool]
Values = dict[str, "np.ndarray[Any, Any]"]


class AdditionOptions(TypedDict, total=False):
    """What `add` and `insert` share; `add` explains them."""

    where: Annotated[Where | None, Default(None)]
    placement: Annotated[Placement, Default("before_activation")]
    momentum: Annotated[float, Default(0.99)]
    epsilon: Annotated[float, Default(1e-3)]


@with_options
def add(model: Any, **options: Unpack[AdditionOptions]) -> Any:
    """Return the twin of a Keras `model` with a BatchNormalization wherever one belongs.

    That is after each Dense, conv, transposed, depthwise or separable layer that an activation
    follows, inside it or behind it; before the activation the layer loses its bias, which the batch
    norm would cancel. An output layer, a layer that is called several times and what is normalised
    already stay. The twin has the same layers, names and values but for that, and is not compiled.
    `where(path, layer)` chooses among the layers; `momentum` and `epsilon` are those of Keras.

    Raises TypeError and ValueError for a model that is not Sequential or Functional or not built
    and for options out of range, SurgeryError where nothing can be normalised.

    >>> model = keras.Sequential([keras.Input((8,)), L.Dense(4, activation="relu"), L.Dense(2)])
    >>> [type(layer).__name__ for layer in add(model).layers]
    ['Dense', 'BatchNormalization', 'Activation', 'Dense']
    """
    plan = plan_addition(model, **options)
    if not plan.edits:
        raise SurgeryError(_nothing_to_normalise(plan))
    return plan.apply(model)


@with_options
def insert(
    model: Any,
    batches: Any,
    *,
    tolerance: float | None = None,
    **options: Unpack[AdditionOptions],
) -> Any:
    """Return a copy of a trained Keras `model` with batch norms, which computes the same.

    The places are those of `add`. In one pass over `batches` the mean and biased variance of what
    each batch norm will get are pooled exactly, in float64; they become its moving statistics, and
    it starts with gamma sqrt(moving_variance + epsilon) and beta moving_mean, which undo them.
    Before the activation it absorbs the bias of its layer. `batches` is what
    `bnkit.keras.batches.inputs_in` takes. That the function is the same is checked on the first
    mini-batch; `fold` says how, and what `tolerance` bounds.

    Raises as `add`, and SurgeryError where the copy computes something else or where statistics are
    not finite.

    >>> model = keras.Sequential([keras.Input((8,)), L.Dense(4, activation="relu"), L.Dense(2)])
    >>> x = np.random.default_rng(0).standard_normal((32, 8)).astype("float32")
    >>> bool(np.allclose(array_of(insert(model, x)(x)), array_of(model(x)), atol=1e-6))
    True
    """
    plan = plan_insertion(model, batches, tolerance=tolerance, **options)
    if not plan.edits:
        raise SurgeryError(_nothing_to_normalise(plan))
    return plan.apply(model)


@with_options
def plan_addition(model: Any, **options: Unpack[AdditionOptions]) -> Plan:
    """Return what `add` would do to each layer, and why it leaves others alone.

    >>> model = keras.Sequential([keras.Input((8,)), L.Dense(4, activation="relu", name="hidden"),
    ...                           L.Dense(2, name="output")])
    >>> print(plan_addition(model))
     layer    kind    change                            why
    ──────────────────────────────────────────────────────────────────────────────────────────────
     hidden   Dense   normalise 4 features, drop bias   its activation is relu
     output   Dense   left alone                        output layer: its result leaves the model
    """
    placing = _Placing(options["placement"], options["momentum"], options["epsilon"])
    edits, alone = _places(model, options["where"], placing)
    changes = merged([change for place in edits for change in placing.changes(place)])
    return Plan(tuple(place.edit for place in edits), alone, changes)


@with_options
def plan_insertion(
    model: Any,
    batches: Any,
    *,
    tolerance: float | None = None,
    **options: Unpack[AdditionOptions],
) -> Plan:
    """Return what `insert` would do to each layer, with the proof that the function is the same."""
    placing = _Placing(options["placement"], options["momentum"], options["epsilon"])
    places, alone = _places(model, options["where"], placing)
    plan = Plan(tuple(place.edit for place in places), alone, {})
    if not places:
        return plan
    first, moments = _measured(model, places, placing, batches)
    values = {p.norm: _undoing(p, moments[p.norm], placing.epsilon) for p in places}
    found = [change for p in places for change in placing.changes(p, values[p.norm])]
    plan = dataclasses.replace(plan, changes=merged(found))
    pairs = [_pair(place, values[place.norm], placing) for place in places]
    proof = prove_same_function(model, plan.apply(model), first, pairs, tolerance=tolerance)
    return dataclasses.replace(plan, proof=proof)


def _pair(place: "_Place", values: Values, placing: "_Placing") -> Pair:
    affine = affine_by(values, placing.epsilon)
    if placing.placement == "after_activation":
        return Pair(place.host, affine, None, None, "inserted", place.axis)
    old = arrays_of(place.layer.operation)
    new = {n: array for n, array in old.items() if not (n == "bias" and place.drops_bias)}
    return Pair(place.layer, affine, old, new, "inserted", place.axis)


@dataclass(frozen=True, eq=False)
class _Place:
    """A weight layer whose output is normalised, or that of the activation behind it."""

    layer: Call
    host: Call  # after which the batch norm stands: the layer, or its activation
    axis: int
    edit: Edit
    drops_bias: bool

    @property
    def norm(self) -> str:
        """The name of the new batch norm."""
        return f"{self.layer.operation.name}_batchnorm"


@dataclass(frozen=True)
class _Placing:
    """Where batch norms go, and with which options."""

    placement: Placement
    momentum: float
    epsilon: float

    def __post_init__(self) -> None:
        if self.placement not in get_args(Placement):
            raise ValueError(
                f"`placement` is {self.placement!r}: choose from {get_args(Placement)}"
            )
        if not 0 <= self.momentum <= 1:
            raise ValueError(
                f"`momentum` is {self.momentum!r}: pass the share that is kept, from 0 to 1 "
                f"(torch's 0.1 is 0.9 here)"
            )
        if not self.epsilon > 0:
            raise ValueError(f"`epsilon` is {self.epsilon!r}: pass a positive number")

    def changes(self, place: _Place, values: Values | None = None) -> Iterator[tuple[int, Change]]:
        """Yield the changes of one place, by the identity of the layer; `values` of the new one."""
        layer = place.layer.operation
        shared = {
            "dtype": keras.dtype_policies.serialize(layer.dtype_policy),
            "trainable": layer.trainable,
        }
        options = {"momentum": self.momentum, "epsilon": self.epsilon, "axis": place.axis}
        norm = NewLayer(
            L.BatchNormalization, {**shared, **options, "name": place.norm}, values or {}
        )
        activation = own_activation(layer)
        if activation is None or self.placement == "after_activation":
            yield id(place.host.operation), Change(after=(norm,))
        else:
            name = f"{layer.name}_{activation}"
            moved = {"activation": keras.activations.serialize(layer.activation), "name": name}
            after = (norm, NewLayer(L.Activation, {**shared, **moved}))
            yield id(layer), Change({"activation": "linear"}, after=after)
        if place.drops_bias:
            yield id(layer), Change({"use_bias": False})


def _places(
    model: Any, where: Where | None, placing: _Placing
) -> tuple[list[_Place], tuple[LeftAlone, ...]]:
    check_graph(model)
    graphs = list(graphs_of(model))
    times_called = Counter(id(call.operation) for graph in graphs for call in graph.calls)
    found = [
        (call, _place(graph, call, times_called, placing) if chosen else NOT_CHOSEN)
        for graph in graphs
        for call in graph.calls
        if isinstance(call.operation, WEIGHT_LAYERS)
        for chosen in [where is None or where(call.path, call.operation)]
    ]
    places = [place for _, place in found if isinstance(place, _Place)]
    alone = [left(call, why) for call, why in found if isinstance(why, str)]
    others = [(c, objection_to_kind(c.operation)) for g in graphs for c in g.calls]
    others = [(call, why) for call, why in others if not is_graph(call.operation)]
    return places, (*alone, *(left(call, why) for call, why in others if why is not None))


def _place(graph: Graph, call: Call, times_called: Counter[int], placing: _Placing) -> _Place | str:
    """Return where the output of a weight layer is normalised, or why it is not."""
    own = own_activation(call.operation)
    readers = _beyond_dropouts(graph, call)
    objection = _objection(graph, call, times_called[id(call.operation)])
    if objection is not None:
        return objection
    if own is not None:
        return _chosen(graph, call, call, f"its activation is {own}", placing)
    others = [reader for reader in readers if not is_activation(reader.operation)]
    if others or not readers:
        return f"no activation follows: {others[0] if others else 'nothing'} reads its output first"
    activation = readers[0]
    if placing.placement == "before_activation":
        return _chosen(graph, call, call, f"{activation} follows", placing)
    objection = _objection(graph, activation, times_called[id(activation.operation)])
    if objection is not None or len(readers) > 1:
        return f"{activation}: {objection or 'another activation follows the layer, too'}"
    return _chosen(graph, call, activation, f"it follows {activation}", placing)


def _objection(graph: Graph, call: Call, times: int) -> str | None:
    """Return why no batch norm belongs behind this call, None if one may."""
    if times > 1:
        return f"called {times} times in one forward: its outputs have several distributions"
    if call.outputs[0] in graph.outputs:
        return "output layer: its result leaves the model"
    followers = _beyond_dropouts(graph, call)
    norms = [each for each in followers if isinstance(each.operation, NORMALISATIONS)]
    if norms:
        return f"already normalised: {norms[0]} follows"
    if not isinstance(call.operation, WEIGHT_LAYERS):
        return None
    if own_activation(call.operation) == "softmax":
        return "its activation is softmax, which makes an output"
    return objection_to_class(call.operation)


def _beyond_dropouts(graph: Graph, call: Call) -> list[Call]:
    """Return who reads the output of `call`, or what dropouts make of it."""
    found: list[Call] = []
    for reader in graph.readers.get(call.outputs[0], []):
        is_dropout = isinstance(reader.operation, DROPOUTS)
        found += _beyond_dropouts(graph, reader) if is_dropout else [reader]
    return found


def _chosen(graph: Graph, call: Call, host: Call, why: str, placing: _Placing) -> _Place:
    layer, axis = call.operation, features_axis(call.operation)
    drops = bool(layer.use_bias) and placing.placement == "before_activation"
    features = graph.shapes[call.outputs[0]][axis]
    action = f"normalise {features} features{', drop bias' if drops else ''}"
    return _Place(call, host, axis, Edit(call.path, call.kind, action, why), drops)


def _measured(
    model: Any, places: list[_Place], placing: _Placing, batches: Any
) -> tuple[Any, dict[str, Moments]]:
    """Return the first mini-batch, and by its name the moments of what each batch norm gets.

    They are measured in a copy that has the batch norms, which hand on what they get, and still
    all biases, so that it computes what `model` does.
    """
    kept = [dataclasses.replace(place, drops_bias=False) for place in places]
    probe = rebuilt(model, merged([change for p in kept for change in placing.changes(p)]))
    moments: dict[str, Moments] = {}

    def measuring(norm: Any) -> Any:
        def instead(_call: Any, x: Any, _keywords: dict[str, Any]) -> Any:
            found = Moments.of(tensor_of(x), channel_axis=norm.axis)
            moments[norm.name] = moments[norm.name] + found if norm.name in moments else found
            return x

        return instead

    names = {place.norm for place in places}
    norms = [layer for layer in layers_inside(probe) if layer.name in names]
    first = None
    with calling_instead({norm: measuring(norm) for norm in norms}):
        for inputs in inputs_in(model, batches):
            first = inputs if first is None else first
            infer(probe, inputs)
    for name, found in moments.items():
        if not found.deviations.isfinite().all():
            raise SurgeryError(
                f"'{name.removesuffix('_batchnorm')}' makes values that are not finite (NaN or "
                f"infinite) on `batches`, which have no statistics"
            )
    return first, moments


def _undoing(place: _Place, moments: Moments, epsilon: float) -> Values:
    """Return values of a batch norm that normalises by `moments` and gives back what it got."""
    layer = place.layer.operation
    mean = moments.mean.numpy()
    variance = moments.variance.numpy().astype("float32").astype("float64")  # as it will be stored
    own_bias = array_of(layer.bias) if place.drops_bias else 0.0
    return {
        "gamma": np.sqrt(variance + epsilon),
        "beta": mean,
        "moving_mean": mean - own_bias,
        "moving_variance": variance,
    }


def _nothing_to_normalise(plan: Plan) -> str:
    reasons = [f"{alone.layer}: {alone.why}" for alone in plan.left_alone]
    if not reasons:
        return "there is nothing to normalise: the model has no dense or conv layer"
    return f"there is nothing to normalise: {'; '.join(reasons[:8])}"
