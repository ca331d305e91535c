"""Options of the commands whose trials a cluster can run."""

from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from bnkit.cli.arguments import named_values
from bnkit.cli.output import refuse
from bnkit.experiments.executors import ENGINES, connected

TRIAL_TIMEOUT = "seconds after which a run counts as failed"
EXECUTOR = f"a cluster that runs it instead: {ENGINES}"
EXECUTOR_OPTION = "an option of the cluster's own, as num_gpus=1; may be given repeatedly"
CODE_BY_VALUE = "send your modules to the cluster, which cannot import them"


def engine_at(
    address: str | None, options: Sequence[str] | None, out: Path
) -> AbstractContextManager[Executor | None]:
    """Return the context of the executor at an address, of none without one.

    `options` are texts NAME=VALUE; files of jobs are kept in the folder `out`.
    """
    if address is not None:
        return connected(address, out / "slurm", named_values(options or ()))
    if options:
        refuse(f"--executor-option {options[0]} is for --executor: give that too")
    return nullcontext()
