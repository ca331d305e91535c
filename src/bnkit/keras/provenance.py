"""What decides the numbers of a Keras model beside its settings: structure, values, versions."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras

from bnkit.experiments.provenance import batch_fingerprint, fingerprint, versions
from bnkit.keras.graph import layers_inside
from bnkit.keras.kernels import array_of
from bnkit.source_code import source_of


def model_fingerprint(model: Any) -> str:
    """Return the fingerprint of a model's structure, whatever its layers are called, and values.

    >>> one, other = (keras.Sequential([keras.Input((2,)), keras.layers.ReLU()]) for _ in range(2))
    >>> model_fingerprint(one) == model_fingerprint(other)
    True
    """
    own = {type(layer) for layer in layers_inside(model)}
    texts = [source_of(kind) for kind in own if not kind.__module__.startswith("keras.")]
    structure = json.dumps(_numbered(model.get_config()), sort_keys=True, default=str)
    return fingerprint({"model": structure, "own": sorted(texts), "arrays": values_of(model)})


def values_of(model: Any) -> str:
    """Return the fingerprint of all values of a model, those of random seeds among them."""
    return batch_fingerprint([array_of(variable) for variable in model.variables])


def keras_versions() -> dict[str, str]:
    """Return the versions that may change a number: bnkit's, Keras', and its backend's."""
    backend = keras.backend.backend()
    module = __import__(backend)
    of_backend = f"{backend} {getattr(module, '__version__', '')}".strip()
    return {**versions(), "keras": keras.__version__, "backend": of_backend}


def keras_settings() -> dict[str, str]:
    """Return Keras' own settings, which a program may have changed before it builds a model."""
    return {
        "floatx": keras.config.floatx(),
        "image_data_format": keras.config.image_data_format(),
        "epsilon": str(keras.config.epsilon()),
        "dtype_policy": keras.config.dtype_policy().name,
    }


@contextmanager
def with_keras_settings(chosen: Mapping[str, str]) -> Iterator[None]:
    """Let Keras have these settings while the block runs."""
    before = keras_settings()
    try:
        _set(chosen)
        yield
    finally:
        _set(before)


def _set(chosen: Mapping[str, str]) -> None:
    if chosen == keras_settings():
        return
    keras.config.set_floatx(chosen["floatx"])
    keras.config.set_image_data_format(chosen["image_data_format"])
    keras.config.set_epsilon(float(chosen["epsilon"]))
    keras.config.set_dtype_policy(chosen["dtype_policy"])


def _numbered(value: Any) -> Any:
    """Return a config with numbers instead of the names of its layers, in their order."""
    names: dict[str, str] = {}

    def note(part: Any) -> None:
        if isinstance(part, Mapping):
            if isinstance(part.get("name"), str):
                names.setdefault(part["name"], f"#{len(names)}")
            for each in part.values():
                note(each)
        elif isinstance(part, list | tuple):
            for each in part:
                note(each)

    def renamed(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {key: renamed(each) for key, each in part.items()}
        if isinstance(part, list | tuple):
            return [renamed(each) for each in part]
        return names.get(part, part) if isinstance(part, str) else part

    note(value)
    return renamed(value)
