"""Executors that run trials on many machines: those of Dask, of Ray, and of Slurm by submitit.

Each is a `concurrent.futures.Executor`, as `compare(..., executor=)` takes any. The engines stay
what they are: their own options are handed on, and they place GPUs.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bnkit.extras import require

ENGINES = "dask://host:port, ray, ray://host:port, or slurm"


@contextmanager
def connected(address: str, folder: Path, options: Mapping[str, Any]) -> Iterator[Executor]:
    """Give an executor on the engine at an address: dask://host:port, ray, ray://host:port, slurm.

    `options` are the engine's: of `Client.get_executor` for Dask, such as resources; of a remote
    function for Ray, such as num_gpus; of `AutoExecutor.update_parameters` for submitit, such as
    slurm_partition, and `bundles_per_task`, how many pairs of trials one job runs. submitit keeps
    its files in `folder`. Raises ValueError for another address, MissingExtraError where the engine
    is not installed.

    >>> with connected("spark", Path("out"), {}):
    ...     pass
    Traceback (most recent call last):
    ValueError: the executor 'spark' is not known: pass dask://host:port, ray, ray://host:port, or \
slurm
    """
    engine, _, place = address.partition("://")
    if engine == "dask" and place:
        require("dask", "--executor dask://")
        from distributed import Client  # noqa: PLC0415  an extra

        with Client(f"tcp://{place}") as client:
            # `pure` tasks with equal arguments are run once: not so a trial that is tried again.
            yield client.get_executor(pure=False, **options)
    elif engine == "ray":
        require("ray", "--executor ray")
        with RayExecutor(address if place else None, **options) as on_ray:
            yield on_ray
    elif address == "slurm":
        require("slurm", "--executor slurm")
        with SlurmExecutor(folder, **options) as on_slurm:
            yield on_slurm
    else:
        raise ValueError(f"the executor {address!r} is not known: pass {ENGINES}")


class RayExecutor(Executor):
    """Runs each call as a task of Ray; `options` are those of a remote function, as num_gpus.

    `address` is that of a cluster; without one Ray takes the one that it finds, or starts its own
    on this machine.
    """

    def __init__(self, address: str | None = None, **options: Any) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to Ray's makers
        import ray  # noqa: PLC0415  an extra

        self._ray = ray
        self._options = {"max_retries": 0, **options}  # run_trials has its own
        self._is_own = not ray.is_initialized()
        if self._is_own:
            ray.init(address=address, include_dashboard=False, log_to_driver=False)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Return the future of a call on the cluster."""

        def call() -> Any:  # Ray takes no function that is built in
            return fn(*args, **kwargs)

        reference = self._ray.remote(call).options(**self._options).remote()
        future: Future[Any] = reference.future()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002  as the class has it
        """Leave the cluster, if this executor joined it; its tasks end."""
        if self._is_own:
            self._ray.shutdown()


class SlurmExecutor(Executor):
    """Runs each call as a job of Slurm, by submitit, which keeps its files in `folder`.

    `options` are those of submitit's `AutoExecutor.update_parameters`; `cluster="local"` runs jobs
    as processes of this machine, to try it out. A job takes seconds to start, so that
    `bundles_per_task` pairs of trials share one.
    """

    LOOK = 1.0  # seconds between two looks at the jobs

    def __init__(
        self,
        folder: Path | str,
        *,
        bundles_per_task: int = 8,
        cluster: str | None = None,
        **options: Any,
    ) -> None:
        import submitit  # noqa: PLC0415  an extra

        self.bundles_per_task = bundles_per_task
        self._engine = submitit.AutoExecutor(folder=Path(folder), cluster=cluster)
        self._engine.update_parameters(**options)
        self._jobs: dict[Future[Any], Any] = {}
        self._ended = threading.Event()
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, daemon=True).start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Return the future of a call in a job."""
        future: Future[Any] = Future()
        with self._lock:
            self._jobs[future] = self._engine.submit(fn, *args, **kwargs)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002  as the class has it
        """Cancel the jobs that have not ended, and stop watching."""
        self._ended.set()
        with self._lock:
            for future, job in self._jobs.items():
                job.cancel()
                future.cancel()
            self._jobs.clear()

    def _watch(self) -> None:
        while not self._ended.is_set():
            with self._lock:
                done = {future: job for future, job in self._jobs.items() if job.done()}
                for future in done:
                    del self._jobs[future]
            for future, job in done.items():
                _settle(future, job)
            time.sleep(self.LOOK)


def _settle(future: "Future[Any]", job: Any) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(job.result())
        except Exception as error:  # noqa: BLE001  that of the job is handed on
            future.set_exception(error)
