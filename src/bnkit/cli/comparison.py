"""`bnkit compare`: a network with and without batch norm, and a report."""

import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from bnkit.cli.arguments import option, setting_options, settings_of, swept
from bnkit.cli.engines import (
    CODE_BY_VALUE,
    EXECUTOR,
    EXECUTOR_OPTION,
    TRIAL_TIMEOUT,
    engine_at,
)
from bnkit.cli.operation import KERAS_FILES
from bnkit.cli.output import chatter_on_stderr, explained, messages, print_result, refuse, say
from bnkit.dataflow.copying import is_keras_model
from bnkit.experiments.comparison import plan_comparison
from bnkit.experiments.data import NAMES
from bnkit.experiments.networks import NETWORKS, networks
from bnkit.experiments.own_loop import own_loop
from bnkit.experiments.settings import COMPARED, REPORTED
from bnkit.experiments.summary import Comparison
from bnkit.experiments.sweep import Interrupted, Sweep
from bnkit.extras import require
from bnkit.names import completed
from bnkit.observation import preserved_random_state
from bnkit.options import showing
from bnkit.references import called, import_reference
from bnkit.report import write_report


@showing(setting_options())
def compare(
    context: typer.Context,
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
        str | None, option(COMPARED, ", ".join(NETWORKS), show_default="mlp")
    ] = None,
    model: Annotated[
        str | None,
        option(
            COMPARED,
            "your own network instead, as package.module:build, a function that returns it, of "
            "PyTorch or Keras, or a .keras file",
        ),
    ] = None,
    train: Annotated[
        str | None,
        option(
            COMPARED,
            "your own training loop, as package.module:train, a function of (model, trial) that "
            "reports to the trial; --data is optional then",
        ),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        option(
            COMPARED,
            "values of a setting that --train reads from trial.settings, each JSON or else text; "
            "may be given repeatedly",
            metavar="NAME=X,X,…",
        ),
    ] = None,
    version: Annotated[
        str,
        option(
            COMPARED,
            "a text to change where your code reads files or packages that have changed: the "
            "results of before are not taken again",
        ),
    ] = "",
    *,
    jobs: Annotated[
        int | None,
        option(REPORTED, "processes, of one thread each", min=1, show_default="one a core"),
    ] = None,
    trial_timeout: Annotated[
        float | None,
        option(REPORTED, TRIAL_TIMEOUT, show_default="no limit"),
    ] = None,
    executor: Annotated[
        str | None,
        option(REPORTED, EXECUTOR),
    ] = None,
    executor_option: Annotated[
        list[str] | None,
        option(REPORTED, EXECUTOR_OPTION),
    ] = None,
    code_by_value: Annotated[
        bool,
        option(REPORTED, CODE_BY_VALUE),
    ] = False,
    log: Annotated[
        str | None,
        option(
            REPORTED,
            "where the numbers of the runs go while they run: tensorboard, into a folder of --out, "
            "or your own as package.module:log, a function of a dict of numbers and the step",
        ),
    ] = None,
    out: Annotated[
        Path, option(REPORTED, "folder of the report and of the results to resume from")
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
    **typed: Any,
) -> None:
    """Would batch norm help this network, and by how much?

    Trains it with and without batch norm, from the same initial weights and on the same batches,
    over learning rates, activations and seeds. Prints a table and a verdict and writes a report
    with charts. An interrupted run resumes where it stopped.

    - `bnkit compare` is the paper's network on scikit-learn's handwritten digits.
    - `bnkit compare --data mnist --network vgg --optimizer adam --learning-rate 0.001,0.01`
    - `bnkit compare --model my.code:build --data my.code:loaders --steps 500`
    - `bnkit compare --model net.keras --data my.code:arrays --epochs 3`

    Exit codes: 0 done, 1 done but some runs failed, 2 wrong use, 130 interrupted.
    """
    if model is not None and (network is not None or _is_typed(context, "activations")):
        named = "--network" if network is not None else "--activation"
        refuse(f"{named} is for the named networks, and --model is your own: leave one out")
    with explained():
        writer: Any = import_reference(log) if log and ":" in log else log
        try:
            with chatter_on_stderr():
                if sweep and train is None:
                    refuse(f"--sweep {sweep[0]} is for a loop of your own: give it as --train")
                no_data = train is not None and not _is_typed(context, "data")
                own_data = import_reference(data) if ":" in data else completed(data, NAMES)
                build: Any = completed(network or "mlp", networks())
                if model is not None:
                    is_file = Path(model).suffix in KERAS_FILES
                    build = model if is_file else import_reference(model)
                plan = _plan_for_keras if _is_keras(build) else _plan
                planned = plan(
                    build,
                    None if no_data else own_data,
                    typed,
                    {name: typed[name] for name in typed if _is_typed(context, name)},
                    train=None if train is None else import_reference(train),
                    sweep=swept(sweep or ()),
                    version=version,
                    data_folder=data_dir,
                    out=out,
                    command=_command(),
                )
                if report_only:
                    comparison = planned.collect()
                else:
                    with engine_at(executor, executor_option, out) as workers:
                        comparison = planned.run(
                            jobs=jobs,
                            trial_timeout=trial_timeout,
                            executor=workers,
                            code_by_value=code_by_value,
                            log=writer,
                        )
        except Interrupted as interruption:
            print_result(interruption.comparison, as_json=as_json)
            say(f"Interrupted. Run the same command to resume:  {_command()}")
            raise typer.Exit(130) from None
        if report_only and all(trial.outcome == "not run" for trial in comparison.trials):
            refuse(
                f"{out} holds no result of this comparison, so there is nothing to report: give "
                f"the folder and the settings of an earlier run, or leave out --report-only"
            )
        print_result(comparison, as_json=as_json)
        _report(comparison, out)
    if any(trial.outcome == "failed" for trial in comparison.trials):
        raise typer.Exit(1)


def _plan(
    build: Any,
    data: Any,
    typed: dict[str, Any],
    given: dict[str, Any],
    *,
    train: Any,
    sweep: Mapping[str, Sequence[Any]],
    **how: Any,
) -> Sweep:
    settings = settings_of(typed)
    loop = None if train is None else own_loop(train, settings, sweep, given=given)
    return plan_comparison(build, data, settings=settings, loop=loop, **how)


def _plan_for_keras(
    build: Any, data: Any, _typed: dict[str, Any], given: dict[str, Any], **how: Any
) -> Sweep:
    require("keras", "a Keras model")
    from bnkit.cli.keras_models import planned_comparison  # noqa: PLC0415  seconds, for these only

    return planned_comparison(build, data, given, **how)


def _is_keras(build: Any) -> bool:
    """Return whether this is a file of Keras, or a function that returns a Keras model."""
    if not callable(build) or "keras" not in sys.modules:
        return isinstance(build, str) and Path(build).suffix in KERAS_FILES
    with preserved_random_state():
        return is_keras_model(called(build, "build"))


def _is_typed(context: typer.Context, parameter: str) -> bool:
    """Return whether the user gave an option, be it with its default value."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def _report(comparison: Comparison, out: Path) -> None:
    """Write the report into `out`; into a new temporary folder where that cannot be written."""
    with messages.status("writing the report"), chatter_on_stderr(), _results_kept(out):
        try:
            path = write_report(comparison, out)
        except ChildProcessError:  # memory is short, wherever the report goes
            raise
        except OSError as error:  # others may have kept the results there, to be read only
            refusal = f"{out} cannot be written ({error.strerror})"
            try:
                path = write_report(comparison, tempfile.mkdtemp(prefix="bnkit-report-"))
            except ChildProcessError:
                raise
            except OSError as also:
                raise OSError(
                    f"the report is lost: {refusal}, nor a temporary folder ({also.strerror})"
                ) from also
            say(f"{refusal}, so the report is in a temporary folder: move it, or it will be lost.")
    say(f"Report: {path}")


@contextmanager
def _results_kept(out: Path) -> Iterator[None]:
    """Say of a report that could not be written that the results are there, and what to do."""
    try:
        yield
    except OSError as error:
        lacking = "allow more memory" if isinstance(error, ChildProcessError) else "make room"
        raise OSError(
            f"{error}. The results in {out} are kept: {lacking}, and run the same command with "
            f"--report-only"
        ) from error


def _command() -> str:
    return shlex.join(["bnkit", *sys.argv[1:]])
