"""`bnkit add`, `insert`, `fold`, `remove`, `convert`, `standardize`: a network is changed."""

import inspect
from typing import Annotated, Any

import typer

from bnkit.cli.arguments import (
    MODEL,
    PLACEMENTS,
    AsJson,
    Checkpoint,
    Data,
    Example,
    Model,
    Out,
    Place,
    Tolerance,
    Where,
    option,
    random_example,
    settings,
)
from bnkit.cli.operation import Operation
from bnkit.cli.output import chatter_on_stderr, explained, print_result
from bnkit.names import one_of
from bnkit.options import showing
from bnkit.references import called, import_reference
from bnkit.surgery import plan_addition

# The options that several commands share, each with its default.
_SHARED: dict[str, tuple[Any, Any]] = {
    "example": (Example, None),
    "data": (Data, None),
    "checkpoint": (Checkpoint, None),
    "where": (Where, None),
    "placement": (Place, "before"),
    "tolerance": (Tolerance, None),
    "out": (Out, None),
    "as_json": (AsJson, False),
}
_CALIBRATED = ("group", "instance")  # kinds that compute something other than a batch norm


def add(
    model: Model,
    example: Annotated[
        str, typer.Option(help="shape of one mini-batch of inputs", metavar="N,C,H,W")
    ],
    placement: Annotated[str, typer.Option(help="before or after the activation")] = "before",
    as_json: Annotated[
        bool, typer.Option("--json", help="print the plan as JSON", show_default=False)
    ] = False,
) -> None:
    """Where would batch norm go in this network, and where not, and why?

    Prints the plan of `bnkit.add(model, example)`, one line a layer; nothing is written. The
    example is random, normally distributed numbers of the given shape.

    - `bnkit add package.module:build --example 8,3,32,32`

    Exit codes: 0 done, 2 wrong use.
    """
    with explained():
        inputs = random_example(example)
        with chatter_on_stderr():
            network = called(import_reference(model), "model")
        where = one_of(PLACEMENTS, placement, "placement")
        plan = plan_addition(network, inputs, placement=where)
    print_result(plan, as_json=as_json)


def _shared(names: str) -> list[inspect.Parameter]:
    """Return the shared options of these names, as the command line shows them."""
    by_keyword = inspect.Parameter.KEYWORD_ONLY
    found = [(name, *_SHARED[name]) for name in names.split()]
    return [
        inspect.Parameter(name, by_keyword, annotation=kind, default=default)
        for name, kind, default in found
    ]


@showing(_shared("data checkpoint where placement tolerance out as_json"))
def insert(model: Model, **given: Any) -> None:
    """Put batch norm into a trained network, which computes the same afterwards.

    Prints the plan of `bnkit.insert(model, batches)`, one line a layer, with the proof: how far
    the changed network is from yours on the first mini-batch. The statistics are those of all
    mini-batches, so there is no --example.

    - `bnkit insert my.code:build --checkpoint trained.pt --data my.code:loaders`
    - `bnkit insert my.code:build --data my.code:loaders --where 'features.*' --out new.safetensors`

    In a program: `model = bnkit.load(build(), "new.safetensors")`.

    Exit codes: 0 done, 1 nothing was changed, 2 wrong use.
    """
    with Operation.begin("inserting", model, given["checkpoint"], given["out"]) as operation:
        from bnkit.surgery.insertion import plan_insertion  # noqa: PLC0415  only for this command

        plan = plan_insertion(
            operation.network,
            operation.batches(given["data"]),
            where=operation.where(given["where"]),
            placement=one_of(PLACEMENTS, given["placement"], "placement"),
            tolerance=given["tolerance"],
        )
    operation.end(plan, as_json=given["as_json"])


@showing(_shared("example data checkpoint where tolerance out as_json"))
def fold(model: Model, **given: Any) -> None:
    """Fold batch norms into the layers beside them: less to compute, the same in eval mode.

    Prints the plan of `bnkit.fold(model, example)`, one line a batch norm, with the proof.

    - `bnkit fold my.code:build --checkpoint trained.pt --example 8,3,32,32 --out folded.pt`
    - `bnkit fold my.code:build --checkpoint trained.pt --data my.code:loaders`

    In a program: `model = bnkit.load(build(), "folded.pt")`.

    Exit codes: 0 done, 1 nothing was changed, 2 wrong use.
    """
    with Operation.begin("folding", model, given["checkpoint"], given["out"]) as operation:
        from bnkit.surgery.folding import plan_folding  # noqa: PLC0415  only for this command

        plan = plan_folding(
            operation.network,
            operation.example(given["example"], given["data"]),
            where=operation.where(given["where"]),
            tolerance=given["tolerance"],
        )
    operation.end(plan, as_json=given["as_json"])


@showing(_shared("example data checkpoint where tolerance out as_json"))
def remove(model: Model, **given: Any) -> None:
    """Take batch norms out: folded where possible, a plain scale and shift elsewhere.

    Prints the plan of `bnkit.remove(model, example)`, one line a batch norm, with the proof that
    the network computes the same in eval mode.

    - `bnkit remove my.code:build --checkpoint trained.pt --example 8,3,32,32 --out plain.pt`

    In a program: `model = bnkit.load(build(), "plain.pt")`.

    Exit codes: 0 done, 1 nothing was changed, 2 wrong use.
    """
    with Operation.begin("removing", model, given["checkpoint"], given["out"]) as operation:
        from bnkit.surgery.removal import plan_removal  # noqa: PLC0415  only for this command

        plan = plan_removal(
            operation.network,
            operation.example(given["example"], given["data"]),
            where=operation.where(given["where"]),
            tolerance=given["tolerance"],
        )
    operation.end(plan, as_json=given["as_json"])


@showing(_shared("example data checkpoint where tolerance out as_json"))
def convert(
    model: Model,
    to: Annotated[
        str,
        typer.Argument(
            help="torch, bnkit, sync, ghost, renorm, masked, accumulated, domains, frozen, group "
            "or instance"
        ),
    ],
    *,
    options: Annotated[
        list[str] | None,
        option(MODEL, "an option of the kind; may be given again", "--option", metavar="NAME=JSON"),
    ] = None,
    **given: Any,
) -> None:
    """Make the batch norms of a network another kind of normalisation.

    Prints the plan of `bnkit.convert(model, to, batches)`, one line a layer, with the proof that
    the network computes the same in eval mode. Group and instance norms do not: they are
    calibrated on all mini-batches of --data, and the plan says how far the output moves.

    - `bnkit convert my.code:build frozen --checkpoint trained.pt --example 8,3,32,32`
    - `bnkit convert my.code:build ghost --option virtual_batch_size=16 --example 64,3,32,32`
    - `bnkit convert my.code:build group --option num_groups=8 --data my.code:loaders --out g.pt`

    In a program: `model = bnkit.load(build(), "g.pt")`.

    Exit codes: 0 done, 1 nothing was changed, 2 wrong use.
    """
    with Operation.begin("converting", model, given["checkpoint"], given["out"]) as operation:
        from bnkit.surgery.conversion import plan_conversion  # noqa: PLC0415  only for this command

        if to in _CALIBRATED and given["data"] is None:
            raise ValueError(f"--data is missing: to become {to!r}, layers are calibrated on it")
        plan = plan_conversion(
            operation.network,
            to,
            operation.example_or_batches(given["example"], given["data"]),
            where=operation.where(given["where"]),
            tolerance=given["tolerance"],
            **settings(options or []),
        )
    operation.end(plan, as_json=given["as_json"])


@showing(_shared("data checkpoint out as_json"))
def standardize(
    model: Model,
    *,
    channel_axis: Annotated[
        int, option(MODEL, "axis of the features: 1 for images, -1 for (N, T, F)")
    ] = 1,
    argument: Annotated[
        str | None,
        option(MODEL, "which argument of the network is standardised, where it takes several"),
    ] = None,
    **given: Any,
) -> None:
    """Put the mean and standard deviation of the training inputs into the network.

    Prints the plan of `bnkit.standardize(model, batches)`. The changed network takes raw inputs.

    - `bnkit standardize my.code:build --data my.code:loaders --out standardized.safetensors`

    In a program: `model = bnkit.load(build(), "standardized.safetensors")`.

    Exit codes: 0 done, 1 nothing was changed, 2 wrong use.
    """
    with Operation.begin("standardising", model, given["checkpoint"], given["out"]) as operation:
        from bnkit.surgery.standardization import plan_standardization  # noqa: PLC0415  as above

        plan = plan_standardization(
            operation.network,
            operation.batches(given["data"]),
            channel_axis=channel_axis,
            argument=argument,
        )
    operation.end(plan, as_json=given["as_json"])
