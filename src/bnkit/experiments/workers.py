"""What runs in the processes of a sweep: one trial at a time, alone, of the code that was planned.

A worker of this machine is told to `load` a trial and then to `run` it. A task of another engine
is `run_apart`, which starts a process for each trial: a task that runs cannot be stopped, and the
worker of an engine may have several threads, which would share the random generators.
"""

import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bnkit.references import message_of
from bnkit.source_code import loaded_sources, record_sources

# A process has one thread, whichever library asks: the trials share the cores.
ONE_THREAD = dict.fromkeys(
    (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
        "NUMBA_NUM_THREADS",
        "TF_NUM_INTRAOP_THREADS",
        "TF_NUM_INTEROP_THREADS",
    ),
    "1",
)

Kind = Literal["done", "died", "too long", "edited", "cannot load", "cannot start"]


@dataclass(frozen=True)
class Reply:
    """What came of one trial: its `result` if it is done, else the `reason`.

    `is_clean` says that the process is as it was before, so that it may run another trial.
    """

    kind: Kind
    result: Any = None
    reason: str = ""
    is_clean: bool = True


@dataclass(frozen=True)
class Payload:
    """A trial as bytes, which only the process that runs it reads, and where its code is found.

    `sources` are fingerprints of the code's files as they were when the trial was planned.
    """

    trial: bytes
    sources: Mapping[str, str]
    path: Sequence[str]


_loaded: Any = None


def load(payload: Payload) -> Reply | None:
    """Make the trial in this process, and return None; a reply if that cannot be."""
    global _loaded  # noqa: PLW0603  one process, one trial
    record_sources()
    sys.path.extend(path for path in payload.path if path not in sys.path)
    try:
        _loaded = pickle.loads(payload.trial)  # noqa: S301  by the process that started this one
    except (Exception, SystemExit) as error:  # noqa: BLE001  the user's modules may raise anything
        return Reply("cannot load", reason=message_of(error))
    return _edited(payload.sources)


def run(sources: Mapping[str, str]) -> Reply:
    """Run the trial that was loaded last, once.

    Between the two calls loky may have put another process in this one's place, if it had grown:
    that one has loaded nothing.
    """
    global _loaded
    trial, _loaded = _loaded, None
    if trial is None:
        return Reply("cannot start", is_clean=False)
    before = {*threading.enumerate()}
    result = trial.run()
    left_behind = [
        thread
        for thread in threading.enumerate()
        # The monitor of tqdm, one for all bars of a process, only looks at clocks.
        if thread not in before and type(thread).__module__.partition(".")[0] != "tqdm"
    ]
    # What a trial imports only while it runs is known by now.
    return _edited(sources) or Reply("done", result, is_clean=not left_behind)


def _edited(sources: Mapping[str, str]) -> Reply | None:
    """Return the reply that this process has loaded other code than was planned, if it has."""
    loaded = loaded_sources()
    changed = [name for name in loaded if name in sources and loaded[name] != sources[name]]
    if not changed:
        return None
    names = ", ".join(repr(name) for name in sorted(changed))
    reason = f"the file of module {names} was edited after the trials were planned: run it again"
    return Reply("edited", reason=reason, is_clean=False)


def run_apart(payloads: Sequence[Payload], timeout: float | None) -> list[Reply]:
    """Run trials one after another, each in a process of its own; `timeout` in seconds for each."""
    return [_run_apart(payload, timeout) for payload in payloads]


def _run_apart(payload: Payload, timeout: float | None) -> Reply:
    with tempfile.TemporaryDirectory(prefix="bnkit-") as folder:
        asked, answered = Path(folder) / "payload", Path(folder) / "reply"
        asked.write_bytes(pickle.dumps(payload))
        program = "from bnkit.experiments.workers import main; main()"
        command = [sys.executable, "-c", program, str(os.getpid()), str(asked), str(answered)]
        search = os.pathsep.join(path for path in sys.path if path)
        environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": search}
        try:
            ended = subprocess.run(  # noqa: S603  this module
                command, env=environment, stdin=subprocess.DEVNULL, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            return Reply("too long")
        if not answered.exists():
            return Reply("died", reason=f"exit code {ended.returncode}")
        reply = pickle.loads(answered.read_bytes())  # noqa: S301  as above
        assert isinstance(reply, Reply)
        return reply


def main() -> None:
    """Run one trial in this process; arguments are its parent, and files of payload and reply."""
    parent, asked, answered = int(sys.argv[1]), *map(Path, sys.argv[2:])
    end_with(parent)
    payload = pickle.loads(asked.read_bytes())  # noqa: S301  as above
    reply = load(payload) or run(payload.sources)
    part = answered.with_suffix(".part")
    part.write_bytes(pickle.dumps(reply))
    part.replace(answered)
    os._exit(0)  # whichever threads the trial left behind


def end_with(parent: int) -> None:
    """End this process when its parent has ended, killed or not."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
