"""`bnkit compare`: a network with and without batch norm, and a report."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from bnkit.cli.arguments import PLACEMENTS, listed, numbers, option, texts
from bnkit.cli.output import chatter_on_stderr, explained, messages, print_result, refuse, say
from bnkit.experiments.comparison import Interrupted, plan_comparison
from bnkit.experiments.settings import Settings
from bnkit.experiments.summary import Comparison
from bnkit.names import one_of
from bnkit.references import import_reference
from bnkit.report import write_report

COMPARED = "What is compared"
TRAINED = "How it is trained"
NORMALISED = "The batch norm"
REPORTED = "What comes out"

HIDDEN = listed(Settings.hidden)
LEARNING_RATES = listed(Settings.learning_rates)
ACTIVATIONS = listed(Settings.activations)


def compare(
    data: Annotated[
        str,
        option(
            COMPARED,
            "digits, mnist, fashion-mnist, or your own as package.module:loaders, a function that "
            "returns (train, test), two iterables of batches (inputs, targets)",
        ),
    ] = "digits",
    data_dir: Annotated[
        Path | None,
        option(
            COMPARED,
            "folder of the MNIST files; without it they are downloaded and checked",
            envvar="BNKIT_DATA",
        ),
    ] = None,
    network: Annotated[
        str | None,
        option(COMPARED, "mlp, dlology, udacity, vgg, resnet or logistic", show_default="mlp"),
    ] = None,
    model: Annotated[
        str | None,
        option(
            COMPARED,
            "your own network instead, as package.module:build, a function that returns it "
            "without batch norm",
        ),
    ] = None,
    hidden: Annotated[
        str, option(COMPARED, "units of each hidden layer of mlp", metavar="N,N,…")
    ] = HIDDEN,
    activation: Annotated[
        str | None,
        option(
            COMPARED,
            "relu, leaky-relu, prelu, relu6, elu, selu, celu, gelu, silu, mish, sigmoid, tanh, "
            "softplus, softsign, hardswish, hardsigmoid, hardtanh, identity",
            metavar="NAME,NAME,…",
            show_default=ACTIVATIONS,
        ),
    ] = None,
    learning_rate: Annotated[
        str, option(COMPARED, "learning rates to sweep over", metavar="X,X,…")
    ] = LEARNING_RATES,
    seeds: Annotated[
        int, option(COMPARED, "runs of each setting; under three there are no intervals")
    ] = Settings.seeds,
    optimizer: Annotated[
        str, option(TRAINED, "sgd, momentum (sgd with 0.9), adam or adamw")
    ] = Settings.optimizer,
    loss: Annotated[
        str, option(TRAINED, "cross-entropy, or sigmoid-cross-entropy for each class")
    ] = Settings.loss,
    init: Annotated[
        str,
        option(
            TRAINED,
            "initial weights: default (torch's), glorot, he, or normal:STD as in normal:0.05",
        ),
    ] = Settings.init,
    batch_size: Annotated[int, option(TRAINED, "examples in a mini-batch")] = Settings.batch_size,
    steps: Annotated[int, option(TRAINED, "optimizer steps of each run")] = Settings.steps,
    epochs: Annotated[
        int | None, option(TRAINED, "passes over the training data, instead of --steps")
    ] = None,
    shuffle: Annotated[
        bool, option(TRAINED, "a new order of the training data in each epoch, or their own")
    ] = Settings.shuffle,
    evaluate_every: Annotated[
        int, option(TRAINED, "steps between two measurements")
    ] = Settings.evaluate_every,
    training_mode_accuracy: Annotated[
        bool,
        option(
            TRAINED,
            "measure also with the statistics of the mini-batch",
            "--training-mode-accuracy",
        ),
    ] = Settings.training_mode_accuracy,
    placement: Annotated[str, option(NORMALISED, "before or after the activation")] = "before",
    momentum: Annotated[
        float, option(NORMALISED, "torch's: Keras' and TensorFlow's 0.99 is 0.01 here")
    ] = Settings.momentum,
    eps: Annotated[float, option(NORMALISED, "added to the variance")] = Settings.eps,
    target: Annotated[
        float, option(REPORTED, "accuracy, from 0 to 1, whose first step is reported")
    ] = Settings.target,
    jobs: Annotated[
        int | None,
        option(REPORTED, "processes, of one thread each", min=1, show_default="one a core"),
    ] = None,
    out: Annotated[
        Path, option(REPORTED, "folder of the report and of the results to go on from")
    ] = Path("bnkit-report"),
    report_only: Annotated[
        bool,
        option(
            REPORTED, "make the report of the results that are there; run nothing", "--report-only"
        ),
    ] = False,
    as_json: Annotated[
        bool,
        option(REPORTED, "print all numbers as JSON instead of the table", "--json"),
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
        refuse(f"{option} is for the named networks, and --model is your own: leave one out")
    with explained():
        settings = Settings(
            learning_rates=numbers(float)(learning_rate),
            activations=texts(activation) if activation is not None else Settings.activations,
            seeds=seeds,
            hidden=numbers(int)(hidden),
            optimizer=optimizer,
            loss=loss,
            init=init,
            batch_size=batch_size,
            steps=steps,
            epochs=epochs,
            evaluate_every=evaluate_every,
            target=target,
            placement=one_of(PLACEMENTS, placement, "placement"),
            momentum=momentum,
            eps=eps,
            shuffle=shuffle,
            training_mode_accuracy=training_mode_accuracy,
        )
        try:
            with chatter_on_stderr():
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
            print_result(interruption.comparison, as_json=as_json)
            say(f"Interrupted. This goes on from here:  {_command()}")
            raise typer.Exit(130) from None
        print_result(comparison, as_json=as_json)
        _report(comparison, out)
    if any(trial.outcome == "failed" for trial in comparison.trials):
        raise typer.Exit(1)


def _report(comparison: Comparison, out: Path) -> None:
    try:
        with messages.status("writing the report"), chatter_on_stderr():
            path = write_report(comparison, out)
    except OSError as error:
        raise OSError(
            f"the report cannot be written into {out} ({error.strerror}): choose another --out"
        ) from error
    say(f"Report: {path}")


def _command() -> str:
    return shlex.join(["bnkit", *sys.argv[1:]])
