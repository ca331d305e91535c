"""How a Keras model is compiled: with what, so that its twin is too, and by which metric judged."""

from collections.abc import Iterable, Mapping
from typing import Any

import keras

from bnkit.experiments.metrics import ACCURACY, Metric, metric_named
from bnkit.keras.graph import compiled_with, graphs_of, is_graph
from bnkit.keras.kernels import WEIGHT_LAYERS
from bnkit.keras.roles import gives_answers, own_activation
from bnkit.keras.settings import KerasSettings
from bnkit.references import reference_to
from bnkit.source_code import source_of

# What a class of the user's may do in a training step; a plain model does not.
_STEPS = ("train_step", "test_step", "compute_loss", "compute_metrics", "train_on_batch")


def check_plain_training(model: Any) -> None:
    """Raise ValueError for a model whose class trains in a way of its own."""
    own = [n for n in _STEPS if getattr(type(model), n) is not getattr(keras.Model, n)]
    of_keras = type(model).__module__.startswith("keras.")
    if own and not of_keras:
        raise ValueError(
            f"`build` returned a {type(model).__name__}, which has a `{own[0]}` of its own that "
            f"its twin would not have: pass a loop of your own as `train`"
        )


def arguments_of(model: Any, settings: KerasSettings, *, own_loop: bool) -> dict[str, Any]:
    """Return what a model is to be compiled with: its own arguments, or those of the settings.

    A model without metrics whose loss is a cross-entropy gets the accuracy. With a loop of the
    user's own, a model that is not compiled stays so, and {} comes back.

    Raises ValueError for settings of what a compiled model brings, for an optimizer that has been
    used, and for a model that is neither compiled nor a classifier.
    """
    found = compiled_with(model)
    if found:
        for name in ("optimizer", "loss"):
            if getattr(settings, name) is not None:
                raise ValueError(
                    f"`{name}` is {getattr(settings, name)!r}, and the model is compiled with its "
                    f"own: leave it out, or do not compile the model in `build`"
                )
        if found["optimizer"] is not None and found["optimizer"].built:
            raise ValueError(
                "the optimizer that `build` compiles with has been used already: make a new one "
                "at each call"
            )
    elif own_loop:
        return {}
    else:
        found = {"optimizer": settings.optimizer or "sgd", "loss": settings.loss}
        if settings.loss is None:
            found["loss"] = _usual_loss(model)
    if not found.get("metrics") and not found.get("weighted_metrics"):
        found |= _accuracy(found["loss"])
    return found


def compiled(model: Any, arguments: Mapping[str, Any], learning_rate: float | None) -> Any:
    """Return `model` compiled with these arguments, at another learning rate unless it is None.

    Raises ValueError for a learning rate where the optimizer has a schedule.
    """
    if not arguments:
        return model
    optimizer = arguments["optimizer"]
    if callable(optimizer) and not isinstance(optimizer, keras.Optimizer):
        optimizer = optimizer(learning_rate)
    optimizer = keras.optimizers.get(optimizer)
    if learning_rate is not None:
        if _has_schedule(optimizer):
            raise ValueError(
                "`learning_rates` is given, and the optimizer that the model is compiled with has "
                "a schedule: leave one out"
            )
        optimizer.learning_rate = learning_rate
    model.compile(**{**arguments, "optimizer": optimizer})
    return model


def compiled_rate(arguments: Mapping[str, Any]) -> float | None:
    """Return the learning rate of the optimizer that a model brings, at its first step.

    None where it brings none.
    """
    optimizer = arguments.get("optimizer")
    if not isinstance(optimizer, keras.Optimizer):
        return None
    return float(keras.ops.convert_to_numpy(optimizer.learning_rate))


def identity_of(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return what of these arguments decides the numbers, functions by their source."""
    return {name: _identity_of(value) for name, value in arguments.items()}


def metric_of(names: Iterable[str], settings: KerasSettings) -> Metric:
    """Return the metric that is judged, of those that a compiled model reports beside its loss.

    >>> metric_of(["loss", "accuracy"], KerasSettings()).name
    'accuracy'
    """
    reported = list(names)
    others = [n for n in reported if n != "loss" and not n.endswith("_loss")] or ["loss"]
    wanted = settings.metric
    if wanted is not None and wanted not in reported:
        raise ValueError(
            f"`metric` is {wanted!r}, and the model reports {', '.join(map(repr, reported))}: name "
            f"one of these, or compile the model with it"
        )
    if wanted is None and len(others) > 1:
        raise ValueError(
            f"the model reports {', '.join(map(repr, others))}: say which is judged, as in "
            f"metric={others[0]!r}"
        )
    name = wanted or others[0]
    if name in ("acc", "accuracy") or name.endswith("_accuracy"):
        return ACCURACY if name == "accuracy" else Metric(name, percent=True)
    return metric_named(name, higher_is_better=settings.higher_is_better)


def _has_schedule(optimizer: Any) -> bool:
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return isinstance(inner.get_config().get("learning_rate"), Mapping)


def _usual_loss(model: Any) -> Any:
    if len(keras.tree.flatten(getattr(model, "outputs", None) or [None])) != 1:
        raise ValueError(
            "`build` returned a model that is not compiled, of several outputs: compile it there "
            "with its loss, or pass `loss`"
        )
    from_logits = not _ends_in_answers(model)
    return keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)


def _ends_in_answers(model: Any) -> bool:
    if not is_graph(model) or not model.built:
        last = model.layers[-1] if model.layers else None
    else:
        graph = next(graphs_of(model))
        last = next((c.operation for c in graph.calls if set(c.outputs) & graph.outputs), None)
        if last is not None and is_graph(last):
            return _ends_in_answers(last)
    if isinstance(last, WEIGHT_LAYERS):
        return own_activation(last) in ("softmax", "sigmoid")
    return last is not None and gives_answers(last)


def _accuracy(loss: Any) -> dict[str, Any]:
    """Return the metrics of a model whose loss says that it is a classifier, else none."""
    name = loss if isinstance(loss, str) else getattr(loss, "name", getattr(loss, "__name__", ""))
    if not isinstance(name, str) or "crossentropy" not in name:
        return {}
    if "binary" in name and getattr(loss, "from_logits", False):
        return {"metrics": [keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0)]}
    return {"metrics": ["accuracy"]}


def _identity_of(value: Any) -> str:
    if isinstance(value, Mapping):
        return str({name: _identity_of(each) for name, each in value.items()})
    if isinstance(value, list | tuple):
        return str([_identity_of(each) for each in value])
    if hasattr(value, "get_config") and not isinstance(value, type):
        config = {name: each for name, each in value.get_config().items() if name != "name"}
        return f"{_code_of(type(value))} {config}"  # names of optimizers are counted on
    return _code_of(value) if callable(value) else repr(value)


def _code_of(thing: Any) -> str:
    """Return the source of a function or class of the user's own, and the name of one of Keras."""
    of_keras = str(getattr(thing, "__module__", "")).startswith("keras.")
    return reference_to(thing) if of_keras else source_of(thing)
