"""The chart engine, in a process of its own: it ends the whole process where memory is short.

The engine is V8 with Vega-Lite, in vl_convert. Run as a program this file is that process, which
needs neither bnkit nor torch: so it starts in no time.
"""

import atexit
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

VEGA_LITE = "6.4"  # the version of the drawing language that altair 6 writes


def svg_of(specification: dict[str, Any]) -> str:
    """Return a Vega-Lite specification drawn as SVG.

    Raises ValueError for one that cannot be drawn, ChildProcessError where the engine dies.
    """
    return str(_engine(os.getpid()).call("vegalite_to_svg", specification, vl_version=VEGA_LITE))


def png_of(svg: str, *, scale: int) -> bytes:
    """Return an SVG as PNG, `scale` pixels a point. Raises as `svg_of` does."""
    return bytes(_engine(os.getpid()).call("svg_to_png", svg, scale=scale))


@contextmanager
def written_whole(page: Path) -> Iterator[None]:
    """Raise ChildProcessError, naming the page, where memory is too short for its charts."""
    try:
        yield
    except MemoryError as error:
        raise ChildProcessError(f"{page} is not written: memory is short") from error
    except ChildProcessError as error:
        raise ChildProcessError(f"{page} is not written: {error}") from error


@cache
def _engine(process: int) -> "_Engine":
    """Return the engine of this process: one that is forked from it has its own."""
    return _Engine(process)


class _Engine:
    """A process that makes calls of vl_convert, one at a time; it starts with the first of them.

    It waits for more until `owner`, this process, ends. The call after its death starts another.
    """

    def __init__(self, owner: int) -> None:
        self._owner = owner
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.end)

    def call(self, function: str, *args: Any, **options: Any) -> Any:
        """Return what a function of vl_convert returns there."""
        with self._lock:
            try:
                self._process = self._process or _started()
                is_well, answer = _answer(self._process, (function, args, options))
            except BaseException:  # Ctrl-C, too: an answer that is not read would be the next one's
                self.end()
                raise
        if not is_well:
            raise ValueError(f"a chart cannot be drawn: {answer}")
        return answer

    def end(self) -> None:
        """End the process, if there is one of this owner."""
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.communicate()
            self._process = None


def _started() -> "subprocess.Popen[bytes]":
    search = os.pathsep.join(path for path in sys.path if path)
    try:
        return subprocess.Popen(  # noqa: S603  this file
            [sys.executable, "-P", __file__],  # -P: the names in this folder are not for imports
            env={**os.environ, "PYTHONPATH": search},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # how V8 dies takes a page; the signal says it
        )
    except OSError as error:
        raise ChildProcessError(_why(f"cannot start ({error.strerror})")) from error


def _answer(process: "subprocess.Popen[bytes]", question: Any) -> tuple[bool, Any]:
    """Return what the process answers, and before it whether that is no error."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        pickle.dump(question, process.stdin)
        process.stdin.flush()
        answer: tuple[bool, Any] = pickle.load(process.stdout)  # noqa: S301  of this file
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        code = process.wait()
        end = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        raise ChildProcessError(_why(end)) from error
    return answer


def _why(end: str) -> str:
    return (
        f"the process that draws the charts {end}: memory is short, or limited by `ulimit -v`, a "
        f"batch system or a container"
    )


def main() -> None:
    """Answer calls of vl_convert from stdin on stdout, until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the engine itself prints
    import vl_convert  # noqa: PLC0415  only in this process

    while True:
        try:
            function, args, options = pickle.load(sys.stdin.buffer)  # noqa: S301  of this file
        except EOFError:
            return
        try:
            answer = True, getattr(vl_convert, function)(*args, **options)
        except Exception as error:  # noqa: BLE001  any of the engine's is the answer
            answer = False, str(error)
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
