"""The commands on Keras models: `.keras` files, and functions that return such models."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

import bnkit.keras as bnk
from bnkit.cli.arguments import random_example, skipped, values_of
from bnkit.cli.operation import Operation
from bnkit.cli.output import Counter
from bnkit.experiments.own_loop import own_loop
from bnkit.experiments.sweep import Sweep
from bnkit.keras.batches import inputs_in, is_array
from bnkit.keras.comparing import plan_comparison
from bnkit.keras.diagnosis import Diagnosis
from bnkit.keras.files import open_model, save_model
from bnkit.keras.graph import check_graph, graphs_of
from bnkit.keras.rules.table import KINDS as RULES_BY_KIND
from bnkit.keras.rules.table import RULES as KERAS_RULES
from bnkit.keras.settings import KerasSettings
from bnkit.references import called, import_reference
from bnkit.surgery.addition import Placement

__all__ = ["RULES_BY_KIND", "KerasOperation", "planned_comparison"]


@dataclass(frozen=True)
class KerasOperation(Operation):
    """A change to the user's Keras model, which is written to a `.keras` file."""

    @classmethod
    def opened(
        cls, model: str, network: Any, checkpoint: Path | None, out: Path | None, counter: Counter
    ) -> "KerasOperation":
        """Return the change of `network`, or of what is in the file `model`."""
        if checkpoint is not None:
            raise ValueError("--checkpoint is for PyTorch: a .keras file holds its values, too")
        if out is not None and out.suffix != ".keras":
            raise ValueError(f"'{out}': a Keras model is written to a .keras file")
        network = open_model(model) if network is None else network
        check_graph(network)
        return cls(network, (), out, counter)

    def verb(self, name: str) -> Callable[..., Any]:
        """Return the function of this name of bnkit.keras; ValueError where there is none."""
        if not hasattr(bnk, name):
            raise ValueError(
                "this command is for PyTorch networks; Keras models have add, insert, fold, "
                "remove, recalibrate and doctor"
            )
        return getattr(bnk, name)  # type: ignore[no-any-return]  # a verb

    def addition(
        self, example: Sequence[str] | None, data: str | None, *, where: Any, placement: Placement
    ) -> Any:
        """Return the plan of `add`, for which nothing is run."""
        if example or data is not None:
            raise ValueError(
                "--example is for PyTorch networks, and --data: nothing is run for a Keras model"
            )
        # It refuses the placement that Keras models do not have.
        return bnk.plan_addition(self.network, where=where, placement=placement)  # type: ignore[arg-type]

    def batches(self, data: str | None) -> Any:
        """Return the mini-batches of --data, as `bnkit.keras` takes them."""
        if data is None:
            raise ValueError("--data is missing: give the function that returns mini-batches")
        found = called(import_reference(data), "data")
        both = isinstance(found, tuple) and len(found) == 2
        return found[0] if both and not _is_inputs(found[0]) else found  # (train, test)

    def example(self, example: Sequence[str] | None, data: str | None) -> Any:
        """Return the inputs of --example or of the first mini-batch of --data, None without."""
        if example and data is not None:
            raise ValueError("the model is run on one mini-batch: give either --example or --data")
        if data is not None:
            return next(inputs_in(self.network, self.batches(data)))
        return _random(example) if example else None

    @property
    def paths(self) -> list[str]:
        """The paths of the layers."""
        return [call.path for graph in graphs_of(self.network) for call in graph.calls]

    def write(self, network: Any, path: Path, *_plans: Any) -> str:
        """Write a changed model, and say where it is; the file holds its architecture."""
        return f"Model: {save_model(network, path)}"

    def diagnosis(self, example: Sequence[str] | None, data: str | None, skip: str) -> Diagnosis:
        """Return what is wrong with the model."""
        batches = None if data is None else self.batches(data)
        given = _random(example) if example else batches
        if data is not None and example:
            raise ValueError("give either --example or --data")
        return bnk.diagnose(self.network, given, skip=skipped(skip, KERAS_RULES))


def planned_comparison(
    build: Any, data: Any, given: Mapping[str, Any], *, train: Any, sweep: Any, **how: Any
) -> Sweep:
    """Return the sweep of a Keras model, by the options that were `given`, in Keras' terms."""
    found = {"epsilon" if name == "eps" else name: v for name, v in values_of(given).items()}
    known = {field.name for field in fields(KerasSettings)}
    for name in found.keys() - known:
        raise ValueError(
            f"--{name.replace('_', '-')} is for PyTorch networks: compile the Keras model with an "
            f"optimizer, or build it, as you want it to be"
        )
    settings = KerasSettings(**found)
    loop = None if train is None else own_loop(train, settings.shared, sweep, given=found)
    return plan_comparison(build, data, settings=settings, loop=loop, **how)


def _is_inputs(value: Any) -> bool:
    return is_array(value) or isinstance(value, dict | tuple)


def _random(example: Sequence[str]) -> Any:
    random = random_example(example)
    if isinstance(random, dict):
        return {name: tensor.numpy() for name, tensor in random.items()}
    return random.numpy() if isinstance(random, Tensor) else [each.numpy() for each in random]
