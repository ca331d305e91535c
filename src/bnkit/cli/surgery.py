"""The commands that change a network, as `bnkit fold`: they plan, print and write."""

import inspect
from collections.abc import Callable
from functools import wraps
from inspect import Parameter
from typing import Annotated, Any

import typer

from bnkit.cli.arguments import (
    ESTIMATORS,
    MODEL,
    PLACEMENTS,
    AsJson,
    Checkpoint,
    Data,
    Example,
    Key,
    Model,
    Out,
    Tolerance,
    Where,
    option,
    settings,
)
from bnkit.cli.operation import Operation, on_random_inputs
from bnkit.cli.output import explained, print_result, say
from bnkit.names import completed, one_beginning
from bnkit.surgery.conversion.kinds import KINDS

_CALIBRATED = ("group", "instance")  # kinds that compute something other than a batch norm


def changing(what: str) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Make a command of a function that plans an `Operation`, with options of its own.

    The command takes the model, --checkpoint, --key, --out and --json too, and where the function
    has `**verified`, which it hands on to its plan, --where and --tolerance.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., None]:
        _, *own = inspect.signature(function).parameters.values()
        own = [_VERIFIED[0] if parameter.name == "where" else parameter for parameter in own]
        verified = own[-1].kind is Parameter.VAR_KEYWORD
        own = own[:-1] if verified else own

        @wraps(function)
        def command(
            model: str, *, checkpoint: Any, key: Any, out: Any, as_json: bool, **typed: Any
        ) -> None:
            begun = Operation.begin(what, model, checkpoint, out, key)
            with begun as operation, on_random_inputs(typed.get("example")):
                if "where" in typed:
                    typed["where"] = operation.where(typed["where"])
                plan = function(operation, **typed)
            operation.end(plan, as_json=as_json)

        command.__doc__ = f"{inspect.getdoc(function)}\n\n{_EXIT_CODES}"
        shared = [*_CHECKPOINT, *(_VERIFIED if verified else ()), *_RESULT]
        command.__signature__ = inspect.Signature([_MODEL, *own, *shared])  # type: ignore[attr-defined]  # what typer looks for
        return command

    return decorate


_EXIT_CODES = "Exit codes: 0 done, 1 nothing was changed, 2 wrong use."


def _shared(name: str, kind: Any, default: Any = None) -> Parameter:
    return Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, annotation=kind, default=default)


_MODEL = _shared("model", Model, Parameter.empty)
_CHECKPOINT = _shared("checkpoint", Checkpoint), _shared("key", Key)
_VERIFIED = _shared("where", Where), _shared("tolerance", Tolerance)
_RESULT = _shared("out", Out), _shared("as_json", AsJson, default=False)


@changing("adding")
def add(
    operation: Operation,
    example: Example = None,
    data: Data = None,
    where: Any = None,
    placement: Annotated[str, option(MODEL, "before or after the activation")] = "before",
) -> Any:
    """Where would batch norm go in this network, and where not, and why?

    Prints the plan of `bnkit.add(model, example)`, one line a layer. The network is run on random
    inputs of the shape of --example, or on the first mini-batch of --data. With --out the twin is
    written, which has all weights of the network.

    - `bnkit add package.module:build --example 8,3,32,32`
    - `bnkit add package.module:build --data package.module:loaders --where 'features.*'`
    - `bnkit add package.module:build --example ids=8,128:30522 --example mask=8,128:bool`
    - `bnkit add net.keras --out twin.keras`
    """
    chosen = one_beginning(PLACEMENTS, placement, "placement")
    return operation.addition(example, data, where=where, placement=chosen)


@changing("inserting")
def insert(
    operation: Operation,
    data: Data = None,
    placement: Annotated[str, option(MODEL, "before or after the activation")] = "before",
    **verified: Any,
) -> Any:
    """Put batch norm into a trained network, which computes the same afterwards.

    Prints the plan of `bnkit.insert(model, batches)`, one line a layer, with the proof: how far
    the changed network is from yours on the first mini-batch. The statistics are those of all
    mini-batches, so there is no --example.

    - `bnkit insert my.code:build --checkpoint trained.pt --data my.code:loaders`
    - `bnkit insert my.code:build --data my.code:loaders --where 'features.*' --out new.safetensors`

    In a program: `model = bnkit.load(build(), "new.safetensors")`.
    """
    where = one_beginning(PLACEMENTS, placement, "placement")
    batches = operation.batches(data)
    return operation.verb("plan_insertion")(operation.network, batches, placement=where, **verified)


@changing("folding")
def fold(operation: Operation, example: Example = None, data: Data = None, **verified: Any) -> Any:
    """Fold batch norms into the layers beside them: less to compute, the same in eval mode.

    Prints the plan of `bnkit.fold(model, example)`, one line a batch norm, with the proof.

    - `bnkit fold net.keras --out folded.keras`
    - `bnkit fold my.code:build --checkpoint trained.pt --example 8,3,32,32 --out folded.pt`
    - `bnkit fold my.code:build --checkpoint trained.pt --data my.code:loaders`

    In a program: `model = bnkit.load(build(), "folded.pt")`.
    """
    return operation.verb("plan_folding")(
        operation.network, operation.example(example, data), **verified
    )


@changing("removing")
def remove(
    operation: Operation, example: Example = None, data: Data = None, **verified: Any
) -> Any:
    """Take batch norms out: folded where possible, a plain scale and shift elsewhere.

    Prints the plan of `bnkit.remove(model, example)`, one line a batch norm, with the proof that
    the network computes the same in eval mode.

    - `bnkit remove my.code:build --checkpoint trained.pt --example 8,3,32,32 --out plain.pt`

    In a program: `model = bnkit.load(build(), "plain.pt")`.
    """
    return operation.verb("plan_removal")(
        operation.network, operation.example(example, data), **verified
    )


@changing("converting")
def convert(
    operation: Operation,
    to: Annotated[
        str,
        typer.Argument(
            help="torch, bnkit, sync, ghost, renorm, masked, accumulated, domains, frozen, group "
            "or instance"
        ),
    ],
    example: Example = None,
    data: Data = None,
    options: Annotated[
        list[str] | None,
        option(MODEL, "an option of the kind; may be given again", "--option", metavar="NAME=JSON"),
    ] = None,
    **verified: Any,
) -> Any:
    """Make the batch norms of a network another kind of normalisation.

    Prints the plan of `bnkit.convert(model, to, batches)`, one line a layer, with the proof that
    the network computes the same in eval mode. Group and instance norms do not: they are
    calibrated on all mini-batches of --data, and the plan says how far the output moves.

    - `bnkit convert my.code:build frozen --checkpoint trained.pt --example 8,3,32,32`
    - `bnkit convert my.code:build ghost --option virtual_batch_size=16 --example 64,3,32,32`
    - `bnkit convert my.code:build group --option num_groups=8 --data my.code:loaders --out g.pt`

    In a program: `model = bnkit.load(build(), "g.pt")`.
    """
    to = completed(to, KINDS)
    if to in _CALIBRATED and data is None:
        raise ValueError(f"--data is missing: to become {to!r}, layers are calibrated on it")
    batches = operation.example(example, data) if data is None else operation.batches(data)
    return operation.verb("plan_conversion")(
        operation.network, to, batches, **verified, **settings(options or [])
    )


@changing("standardising")
def standardize(
    operation: Operation,
    data: Data = None,
    channel_axis: Annotated[
        int, option(MODEL, "axis of the features: 1 for images, -1 for (N, T, F)")
    ] = 1,
    argument: Annotated[
        str | None,
        option(MODEL, "which argument of the network is standardised, where it takes several"),
    ] = None,
) -> Any:
    """Put the mean and standard deviation of the training inputs into the network.

    Prints the plan of `bnkit.standardize(model, batches)`. The changed network takes raw inputs.

    - `bnkit standardize my.code:build --data my.code:loaders --out standardized.safetensors`

    In a program: `model = bnkit.load(build(), "standardized.safetensors")`.
    """
    return operation.verb("plan_standardization")(
        operation.network, operation.batches(data), channel_axis=channel_axis, argument=argument
    )


def recalibrate(
    model: Model,
    data: Data = None,
    estimator: Annotated[
        str, option(MODEL, "batch_statistics: one pass, or layer_by_layer: a pass a layer")
    ] = "batch_statistics",
    checkpoint: Checkpoint = None,
    key: Key = None,
    where: Where = None,
    out: Out = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Measure the running statistics of a network anew, as those of all of --data.

    Prints how far the old ones were off, a line a batch norm, as
    `bnkit.plan_recalibration(model, batches)`.

    - `bnkit recalibrate net.keras --data my.code:loaders --out good.keras`
    - `bnkit recalibrate my.code:build --checkpoint net.pt --data my.code:loaders --out good.pt`

    Exit codes: 0 done, 2 wrong use.
    """
    with Operation.begin("measuring", model, checkpoint, out, key) as operation:
        found = operation.verb("plan_recalibration")(
            operation.network,
            operation.batches(data),
            where=operation.where(where),
            estimator=one_beginning(ESTIMATORS, estimator, "estimator"),
            progress=False,
        )
    print_result(found, as_json=as_json)
    if out is not None:
        with explained():
            say(operation.write(found.apply(operation.network), out))
