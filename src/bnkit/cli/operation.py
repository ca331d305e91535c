"""`Operation`: what every command that changes a network does before and after the change."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import typer

from bnkit import surgery
from bnkit.batches import NoBatchesError, calls_of, each_of, number_of, why_none
from bnkit.checkpoints import Document, format_of, read, save
from bnkit.cli.arguments import random_example, skipped, texts
from bnkit.cli.output import (
    Counter,
    chatter_on_stderr,
    explained,
    print_result,
    refuse,
    say,
    working,
)
from bnkit.dataflow.copying import is_keras_model
from bnkit.dataflow.tracing import ExampleError
from bnkit.diagnosis import Diagnosis, diagnose
from bnkit.diagnosis.rules.table import RULES
from bnkit.extras import require
from bnkit.recalibration import plan_recalibration
from bnkit.references import blaming, called, import_reference
from bnkit.surgery.addition import Placement
from bnkit.surgery.plan import Plan
from bnkit.surgery.verification import SurgeryError
from bnkit.tables import first_few

CHECKPOINTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar")
KERAS_FILES = (".keras", ".h5", ".hdf5")


@dataclass(frozen=True)
class Operation:
    """A change to the user's network, and how it came to be what it is by plans before this one."""

    network: Any
    plans: tuple[Document, ...]
    out: Path | None
    counter: Counter

    @classmethod
    @contextmanager
    def begin(
        cls,
        what: str,
        model: str,
        checkpoint: Path | None,
        out: Path | None,
        key: str | None = None,
    ) -> Iterator["Operation"]:
        """Build the network and plan its change in the block; errors end the program in a sentence.

        A promise that cannot be kept has exit code 1: the command was right, the network is not
        changed.
        """
        with explained(), working(what) as counter, chatter_on_stderr():
            operation = cls._opened(model, checkpoint, out, counter, key)
            try:
                yield operation
            except SurgeryError as error:
                refuse(str(error), code=1)

    @classmethod
    def _opened(
        cls,
        model: str,
        checkpoint: Path | None,
        out: Path | None,
        counter: Counter,
        key: str | None,
    ) -> "Operation":
        is_file = Path(model).suffix in KERAS_FILES
        if Path(model).suffix in CHECKPOINTS:
            raise ValueError(
                f"{model!r} is a checkpoint, which holds values and no network: give the function "
                f"that builds the network, and --checkpoint {model}"
            )
        if out is not None and out.suffix not in KERAS_FILES:
            format_of(out)  # a wrong suffix is worth no waiting
        if key is not None and checkpoint is None:
            raise ValueError(f"--key {key} is of a --checkpoint: give that too")
        network: Any = None if is_file else called(import_reference(model), "model")
        if is_file or is_keras_model(network):
            require("keras", "a Keras model")
            from bnkit.cli.keras_models import KerasOperation  # noqa: PLC0415  seconds, for these only

            return KerasOperation.opened(model, network, checkpoint, out, counter)
        if out is not None:
            format_of(out)
        plans: tuple[Document, ...] = ()
        if checkpoint is not None:
            found = read(checkpoint, key=key)
            network, plans = found.restore(network), found.plans or ()
        return cls(network, plans, out, counter)

    def verb(self, name: str) -> Callable[..., Any]:
        """Return the function of this name for networks of this kind."""
        return {"plan_recalibration": plan_recalibration}.get(name) or getattr(surgery, name)

    def addition(
        self, example: Sequence[str] | None, data: str | None, *, where: Any, placement: Placement
    ) -> Any:
        """Return the plan of `add`, on the inputs of --example or --data."""
        return surgery.plan_addition(
            self.network, self.example(example, data), where=where, placement=placement
        )

    def batches(self, data: str | None) -> Iterable[Any]:
        """Return the mini-batches of --data, counted as they are taken."""
        if data is None:
            raise ValueError("--data is missing: give the function that returns mini-batches")
        found = called(import_reference(data), "data")
        if isinstance(found, tuple) and len(found) == 2:
            found = found[0]  # (train, test)
        with blaming(f"{data!r} returned what are not mini-batches"):
            batches = each_of(found)
        passes = _Passes(batches, self.counter)
        return iter(passes) if isinstance(batches, Iterator) else passes

    def example(self, example: Sequence[str] | None, data: str | None) -> Any:
        """Return the inputs of --example, or of the first mini-batch of --data."""
        if bool(example) == (data is not None):
            raise ValueError(
                "the network is run on one mini-batch: give either its shape, as in --example "
                "8,3,32,32, or --data"
            )
        if example:
            return random_example(example)
        args, keywords = next(calls_of(self.network, self.batches(data)))
        return keywords or args

    @property
    def paths(self) -> list[str]:
        """The paths of the layers."""
        return [path for path, _ in self.network.named_modules() if path]

    def where(self, globs: str | None) -> Callable[[str, Any], bool] | None:
        """Return what chooses the layers whose paths fit one of --where."""
        if globs is None:
            return None
        wanted, paths = texts(globs), self.paths
        if not any(fnmatchcase(path, glob) for path in paths for glob in wanted):
            there = f"the paths are {first_few(paths, separator=', ')}"
            raise ValueError(
                f"--where {globs!r} fits no layer: {there if paths else 'the network has only one'}"
            )
        return lambda path, _layer: any(fnmatchcase(path, glob) for glob in wanted)

    def end(self, plan: Plan, *, as_json: bool) -> None:
        """Print the plan, and write the checkpoint if there is anything to write."""
        print_result(plan, as_json=as_json)
        if not plan.edits:
            say("Nothing was changed, and no file is written.")
            raise typer.Exit(1)
        if self.out is not None:
            with explained():
                say(self.write(plan.apply(self.network), self.out, plan))

    def write(self, network: Any, path: Path, *plans: Plan | Document) -> str:
        """Write a changed network, made by these plans after those before; say where it is."""
        return f"Checkpoint: {save(network, path, plan=[*self.plans, *plans])}"

    def diagnosis(self, example: Sequence[str] | None, data: str | None, skip: str) -> Diagnosis:
        """Return what is wrong with the network."""
        return diagnose(
            self.network,
            None if data is None else self.batches(data),
            example=random_example(example) if example else None,
            skip=skipped(skip, RULES),
            progress=False,
        )


@contextmanager
def on_random_inputs(example: Sequence[str] | None) -> Iterator[None]:
    """Say how --example describes other inputs where the network cannot run on these."""
    try:
        yield
    except ExampleError as error:
        if not example:
            raise
        raise ExampleError(
            f"{error}; --example describes one input and may be given again, as in --example "
            f"ids=8,128:30522 --example mask=8,128:bool, or --data brings mini-batches"
        ) from error


@dataclass(frozen=True)
class _Passes:
    """The user's mini-batches: each pass is counted, and errors in it are blamed on them."""

    batches: Iterable[Any]
    counter: Counter

    def __iter__(self) -> Iterator[Any]:
        seen = False
        with blaming("reading `data` fails"):
            for batch in self.counter(self.batches, total=number_of(self.batches)):
                seen = True
                yield batch
        if not seen:
            raise NoBatchesError(why_none(self.batches))
