"""The command line: parse, call one public function, print."""

import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import typer
from rich.console import Console

from bnkit.lab.comparison import Interrupted, plan_comparison
from bnkit.lab.names import one_of
from bnkit.lab.references import called, import_reference
from bnkit.lab.settings import Settings
from bnkit.lab.summary import Comparison
from bnkit.report import write_report
from bnkit.surgery import plan_addition
from bnkit.surgery.addition import Placement

Number = TypeVar("Number", int, float)

app = typer.Typer(
    help="Batch normalization for PyTorch: add it, prove that it helps.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
)
messages = Console(stderr=True, markup=False, highlight=False, emoji=False)

_PLACEMENTS: dict[str, Placement] = {
    "before": "before_activation",
    "after": "after_activation",
    "before_activation": "before_activation",
    "after_activation": "after_activation",
}

COMPARED = "What is compared"
TRAINED = "How it is trained"
NORMALISED = "The batch norm"
REPORTED = "What comes out"


def main() -> None:
    """Run the command line; SIGTERM ends it as Ctrl-C does."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as it is in the background of a script
            signal.signal(number, _interrupt_once)
    app()


def _interrupt_once(_number: int, _frame: object) -> None:
    # What comes after the first Ctrl-C could only interrupt the clearing up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


@app.callback()
def _commands() -> None:
    """Batch normalization for PyTorch: add it, prove that it helps."""


def _texts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(kind: Callable[[str], Number]) -> Callable[[str], tuple[Number, ...]]:
    def parse(text: str) -> tuple[Number, ...]:
        try:
            return tuple(kind(part) for part in _texts(text))
        except ValueError:
            wanted = "whole numbers" if kind is int else "numbers"
            raise ValueError(f"{text!r}: give {wanted} with commas between them") from None

    return parse


def _listed(values: Sequence[object]) -> str:
    return ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def _option(panel: str, help_text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=panel, **more)


@app.command()
def compare(
    data: Annotated[
        str,
        _option(
            COMPARED,
            "digits, mnist, fashion-mnist, or your own as package.module:loaders, a function that "
            "returns (train, test), two iterables of batches (inputs, targets)",
        ),
    ] = "digits",
    data_dir: Annotated[
        Path | None,
        _option(
            COMPARED,
            "folder of the MNIST files; without it they are downloaded and checked",
            envvar="BNKIT_DATA",
        ),
    ] = None,
    network: Annotated[
        str | None,
        _option(COMPARED, "mlp, dlology, udacity, vgg, resnet or logistic", show_default="mlp"),
    ] = None,
    model: Annotated[
        str | None,
        _option(
            COMPARED,
            "your own network instead, as package.module:build, a function that returns it "
            "without batch norm",
        ),
    ] = None,
    hidden: Annotated[
        str, _option(COMPARED, "units of each hidden layer of mlp", metavar="N,N,…")
    ] = _listed(Settings.hidden),
    activation: Annotated[
        str | None,
        _option(
            COMPARED,
            "relu, leaky-relu, prelu, relu6, elu, selu, celu, gelu, silu, mish, sigmoid, tanh, "
            "softplus, softsign, hardswish, hardsigmoid, hardtanh, identity",
            metavar="NAME,NAME,…",
            show_default=_listed(Settings.activations),
        ),
    ] = None,
    learning_rate: Annotated[
        str, _option(COMPARED, "learning rates to sweep over", metavar="X,X,…")
    ] = _listed(Settings.learning_rates),
    seeds: Annotated[
        int, _option(COMPARED, "runs of each setting; under three there are no intervals")
    ] = Settings.seeds,
    optimizer: Annotated[
        str, _option(TRAINED, "sgd, momentum (sgd with 0.9), adam or adamw")
    ] = Settings.optimizer,
    loss: Annotated[
        str, _option(TRAINED, "cross-entropy, or sigmoid-cross-entropy for each class")
    ] = Settings.loss,
    init: Annotated[
        str,
        _option(
            TRAINED,
            "initial weights: default (torch's), glorot, he, or normal:STD as in normal:0.05",
        ),
    ] = Settings.init,
    batch_size: Annotated[int, _option(TRAINED, "examples in a mini-batch")] = Settings.batch_size,
    steps: Annotated[int, _option(TRAINED, "optimizer steps of each run")] = Settings.steps,
    epochs: Annotated[
        int | None, _option(TRAINED, "passes over the training data, instead of --steps")
    ] = None,
    shuffle: Annotated[
        bool, _option(TRAINED, "a new order of the training data in each epoch, or their own")
    ] = Settings.shuffle,
    evaluate_every: Annotated[
        int, _option(TRAINED, "steps between two measurements")
    ] = Settings.evaluate_every,
    training_mode_accuracy: Annotated[
        bool,
        _option(
            TRAINED,
            "measure also with the statistics of the mini-batch",
            "--training-mode-accuracy",
        ),
    ] = Settings.training_mode_accuracy,
    placement: Annotated[str, _option(NORMALISED, "before or after the activation")] = "before",
    momentum: Annotated[
        float, _option(NORMALISED, "torch's: Keras' and TensorFlow's 0.99 is 0.01 here")
    ] = Settings.momentum,
    eps: Annotated[float, _option(NORMALISED, "added to the variance")] = Settings.eps,
    target: Annotated[
        float, _option(REPORTED, "accuracy, from 0 to 1, whose first step is reported")
    ] = Settings.target,
    jobs: Annotated[
        int | None,
        _option(REPORTED, "processes, of one thread each", min=1, show_default="one a core"),
    ] = None,
    out: Annotated[
        Path, _option(REPORTED, "folder of the report and of the results to go on from")
    ] = Path("bnkit-report"),
    report_only: Annotated[
        bool,
        _option(
            REPORTED, "make the report of the results that are there; run nothing", "--report-only"
        ),
    ] = False,
    as_json: Annotated[
        bool,
        _option(REPORTED, "print all numbers as JSON instead of the table", "--json"),
    ] = False,
) -> None:
    """Would batch norm help this network, and by how much?

    Trains it with and without batch norm, from the same initial weights and on the same batches,
    over learning rates, activations and seeds. Prints a table and a verdict and writes a report
    with charts. A run that was cut off goes on where it stopped.

    - `bnkit compare` is the paper's network on scikit-learn's handwritten digits.
    - `bnkit compare --data mnist --network vgg --optimizer adam --learning-rate 0.001,0.01`
    - `bnkit compare --model my.code:build --data my.code:loaders --steps 500`

    Exit codes: 0 done, 1 done but some runs failed, 2 wrong use, 130 interrupted.
    """
    if model is not None and (network is not None or activation is not None):
        option = "--network" if network is not None else "--activation"
        _refuse(f"{option} is for the named networks, and --model is your own: leave one out")
    with _explained():
        settings = Settings(
            learning_rates=_numbers(float)(learning_rate),
            activations=_texts(activation) if activation is not None else Settings.activations,
            seeds=seeds,
            hidden=_numbers(int)(hidden),
            optimizer=optimizer,
            loss=loss,
            init=init,
            batch_size=batch_size,
            steps=steps,
            epochs=epochs,
            evaluate_every=evaluate_every,
            target=target,
            placement=one_of(_PLACEMENTS, placement, "placement"),
            momentum=momentum,
            eps=eps,
            shuffle=shuffle,
            training_mode_accuracy=training_mode_accuracy,
        )
        try:
            with _chatter_on_stderr():
                sweep = plan_comparison(
                    import_reference(model) if model is not None else network or "mlp",
                    import_reference(data) if ":" in data else data,
                    settings=settings,
                    data_folder=data_dir,
                    out=out,
                    command=_command(),
                )
                comparison = sweep.collect() if report_only else sweep.run(jobs=jobs)
        except Interrupted as interruption:
            _print_comparison(interruption.comparison, as_json=as_json)
            messages.print(f"\nInterrupted. This goes on from here:  {_command()}", soft_wrap=True)
            raise typer.Exit(130) from None
        _print_comparison(comparison, as_json=as_json)
        _report(comparison, out)
    if any(trial.outcome == "failed" for trial in comparison.trials):
        raise typer.Exit(1)


@app.command()
def add(
    model: Annotated[
        str, typer.Argument(help="a function that returns the network, as package.module:build")
    ],
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
    with _explained():
        shape = _numbers(int)(example)
        if not shape or min(shape) < 1:
            raise ValueError(f"--example is {example!r}: give sizes of at least 1, as in 8,3,32,32")
        with _chatter_on_stderr():
            network = called(import_reference(model), "model")
        where = one_of(_PLACEMENTS, placement, "placement")
        plan = plan_addition(network, torch.randn(shape), placement=where)
    print(json.dumps(plan.to_json(), indent=2) if as_json else plan)  # noqa: T201  the output


def _print_comparison(comparison: Comparison, *, as_json: bool) -> None:
    text = json.dumps(comparison.to_json(), indent=2, allow_nan=False) if as_json else comparison
    print(text, flush=True)  # noqa: T201  the output


def _report(comparison: Comparison, out: Path) -> None:
    try:
        with messages.status("writing the report"), _chatter_on_stderr():
            path = write_report(comparison, out)
    except OSError as error:
        raise OSError(
            f"the report cannot be written into {out} ({error.strerror}): choose another --out"
        ) from error
    messages.print(f"\nReport: {path}", soft_wrap=True)


def _command() -> str:
    return shlex.join(["bnkit", *sys.argv[1:]])


@contextmanager
def _chatter_on_stderr() -> Iterator[None]:
    """Send what people's code prints to stderr, from other processes too: stdout is for results."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def _explained() -> Iterator[None]:
    """Turn the errors of wrong use, which explain themselves, into one line and exit code 2."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        _refuse(str(error))


def _refuse(sentence: str) -> None:
    messages.print(f"Error: {sentence}", soft_wrap=True)
    raise typer.Exit(2)
