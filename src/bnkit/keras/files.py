"""`.keras` files: opened without running anything that is in them, and written whole."""

import json
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from bnkit.files import moved_into_place

_OLD = (".h5", ".hdf5")
# Classes of Keras whose configs hold code, or name files of other formats.
_HOLD_CODE = frozenset(
    "FlaxLayer IntegerLookup JaxLayer Lambda StringLookup TFSMLayer TextVectorization "
    "TorchModuleWrapper __lambda__".split()
)


def open_model(path: str | Path, *, compiled: bool = False) -> Any:
    """Return the Keras model in a `.keras` file; nothing in the file is run.

    It is `compiled` as it was saved only where that is asked for.

    Its config is looked through before Keras reads it, which it does by `safe_mode=True` only.

    Raises ValueError for a file of another format, such as `.h5`, for one that is damaged, and for
    one with custom objects or layers that hold code; OSError where it cannot be read.

    >>> import tempfile
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="d")])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = save_model(model, f"{folder}/net.keras")
    ...     open_model(f"{folder}/net.keras").layers[0].name
    'd'
    """
    path = Path(path)
    if path.suffix in _OLD:
        raise ValueError(
            f"'{path}' has the old format {path.suffix}, which can hold code: open it where you "
            f"trust it, by keras.models.load_model, and save it as a .keras file"
        )
    _check(path, _config_in(path))
    try:
        with warnings.catch_warnings():  # that the state of an optimizer is left out, which it may
            warnings.filterwarnings("ignore", message="Skipping variable loading for optimizer")
            return keras.models.load_model(path, compile=compiled, safe_mode=True)
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"'{path}' cannot be opened: {type(error).__name__}: {first[:200]}"
        ) from error


def save_model(model: Any, path: str | Path) -> Path:
    """Write a Keras model to `path`, whole or not at all, and return that.

    Raises ValueError for a path that does not end in .keras, OSError if it cannot be written.
    """
    path = Path(path)
    if path.suffix != ".keras":
        raise ValueError(f"'{path}': a Keras model is written to a .keras file")
    with moved_into_place(path) as part:
        written = part.with_name(f"{part.name}.keras")  # the only suffix that Keras writes
        try:
            model.save(written)
            written.replace(part)
        finally:
            written.unlink(missing_ok=True)
    return path


def _config_in(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive, archive.open("config.json") as file:
            return json.load(file)
    except (zipfile.BadZipFile, KeyError, RecursionError, ValueError) as error:
        raise ValueError(f"'{path}' is not a .keras file, or it is damaged") from error


def _check(path: Path, config: Any) -> None:
    """Raise ValueError for objects that are not of Keras, and for those that hold code."""
    for found in _objects_in(config):
        name, module = str(found["class_name"]), str(found.get("module") or "keras")
        if name in _HOLD_CODE:
            raise ValueError(
                f"'{path}' has a {name.strip('_')}, which can hold code or name other files, so it "
                f"is not opened: return the model from a function of yours, as package.module:build"
            )
        of_keras = module in ("keras", "builtins") or module.startswith("keras.")
        custom = found.get("registered_name")
        if not of_keras or (isinstance(custom, str) and ">" in custom):
            raise ValueError(
                f"'{path}' has the custom object {custom or name} ({module}), whose code is not in "
                f"the file: return the model from a function of yours, as package.module:build"
            )


def _objects_in(config: Any) -> Iterator[dict[str, Any]]:
    """Yield all serialised objects of a config, at any depth."""
    waiting = [config]
    while waiting:
        here = waiting.pop()
        if isinstance(here, dict):
            if "class_name" in here:
                yield here
            waiting += here.values()
        elif isinstance(here, list):
            waiting += here
