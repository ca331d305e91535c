"""`bnkit bench`, how fast it is here; `bnkit warmup`, the core compiled beforehand."""

from pathlib import Path
from typing import Annotated

import typer

from bnkit.cli.arguments import AsJson, option
from bnkit.cli.output import (
    chatter_on_stderr,
    explained,
    messages,
    print_result,
    refuse,
    say,
    working,
)
from bnkit.extras import require

MEASURED = "What is measured"


def bench(
    quick: Annotated[
        bool,
        option(MEASURED, "only mini-batches under 16 MiB", "--quick", show_default=False),
    ] = False,
    compiled: Annotated[
        bool,
        option(
            MEASURED,
            "measure torch.compile too, which needs a C++ compiler",
            "--compile",
            show_default=False,
        ),
    ] = False,
    seconds: Annotated[
        float, option(MEASURED, "for the training of each mini-batch", min=0.0)
    ] = 2.0,
    out: Annotated[
        Path | None,
        option(
            "What comes out",
            "folder for benchmark.json and the chart as PNG, SVG and HTML",
            metavar="FOLDER",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """How fast are the batch norms of bnkit on this machine, beside those of torch?

    Prints the bandwidth of a copy, then one line for each mini-batch of well-known networks, in
    float32 on the CPU: times of batch norm and ReLU, forward and backward, in torch and in bnkit,
    how many times faster it is in training and in inference, and how many passes over memory a
    copy would have made in that time. Results are compared with float64 first. Let nothing else
    run on the machine meanwhile.

    - `bnkit bench --quick` takes half a minute.
    - `bnkit bench --compile --out benchmark` takes some minutes, and draws the chart.

    Exit codes: 0 done, 1 a result is wrong, 2 wrong use.
    """
    with explained():
        if out is not None:
            require("report", "--out")
        with working("measuring", auto_refresh=False) as counted, chatter_on_stderr():
            from bnkit.benchmarking import benchmark as benchmarks  # noqa: PLC0415  only for this command
            from bnkit.benchmarking.cases import CASES, QUICK  # noqa: PLC0415

            cases = QUICK if quick else CASES
            try:
                benchmark = benchmarks.bench(
                    cases,
                    seconds=seconds,
                    compiled=compiled,
                    progress=lambda taken: counted(taken, total=len(cases)),
                )
            except ArithmeticError as error:
                refuse(f"bnkit computes something other than torch: {error}", code=1)
        if not as_json:
            print(f"A copy moves {benchmark.bandwidth / 1e9:.1f} GB/s.\n")  # noqa: T201  the output
        print_result(benchmark, as_json=as_json)
        if out is not None:
            from bnkit.report.benchmark_chart import write_benchmark  # noqa: PLC0415  altair takes long

            with messages.status("drawing"), chatter_on_stderr():
                page = write_benchmark(benchmark, out)
            say(f"Chart: {page}")


def warmup(
    as_json: Annotated[
        bool, typer.Option("--json", help="print all of it as JSON", show_default=False)
    ] = False,
) -> None:
    """Compile the core now, so that no later process has to.

    The core computes batch norm on the CPU. It is C++, and is compiled for the installed torch when
    it is first needed, in about half a minute, and kept in the user's cache: $XDG_CACHE_HOME or
    ~/.cache, in bnkit/. It runs on all CPUs of its family. Prints where it lies.

    - `RUN pip install bnkit && bnkit warmup` in the recipe of a container image.

    Exit codes: 0 it is there, 1 it cannot be built, and torch's kernels serve, 2 wrong use.
    """
    with explained():
        with working("compiling") as counted, chatter_on_stderr():
            from bnkit.kernels import build  # noqa: PLC0415  it imports torch

            try:
                core = build.build(progress=lambda steps: counted(steps, total=len(steps)))
            except build.BuildError as error:
                core = build.Core(None, str(error))
        print_result(core, as_json=as_json)
    if core.path is None:
        raise typer.Exit(1)
