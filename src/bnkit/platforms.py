"""What not every platform has, memory limits, forks and alarms, with what serves there."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROCESS_BEGUN = time.time()  # about when; a program imports bnkit in its first lines
JOBS = "BNKIT_JOBS"  # in the environment of a comparison's workers: how many there are
_UNKNOWN_MEMORY = 8 * 2**30  # bytes, where the system does not say how much there is


def memory_share() -> int:
    """Return the bytes of memory that this process may count on.

    That is the machine's memory, or what the control group (a container, a batch job) allows of
    it, divided by the processes that torchrun (LOCAL_WORLD_SIZE) or a comparison's `jobs`
    started here.
    """
    share = min([_memory_of_machine(), *_limits_of_control_groups()])
    for processes in map(os.environ.get, ("LOCAL_WORLD_SIZE", JOBS)):
        if processes and processes.isdecimal():
            share //= max(1, int(processes))
    return share


def _memory_of_machine() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # as on Windows
        return _UNKNOWN_MEMORY


def _limits_of_control_groups(root: Path = Path("/")) -> Iterator[int]:
    """Yield the memory limits of the groups that this process is in, each group of its parents too.

    Linux, documentation of cgroups v2 (memory.max) and v1 (memory.limit_in_bytes).
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for group in groups:  # "0::/path" for v2, "4:memory:/path" for v1
        _, controllers, path = group.split(":", 2)
        if controllers not in {"", "memory"}:
            continue
        top = root / "sys/fs/cgroup" / controllers
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        folder = top / path.lstrip("/")
        for place in (folder, *folder.parents):
            with suppress(OSError, ValueError):  # no such file, as in the root group, or "max"
                yield int((place / name).read_text())
            if place == top:
                break


def after_fork(function: Callable[[], object]) -> None:
    """Call `function` in each child that this process forks; where nothing forks, never."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)


@contextmanager
def ending(error: type[BaseException], left: Callable[[], float]) -> Iterator[None]:
    """Raise `error` in the block once `left()`, in seconds, is not above 0; it is asked until then.

    On the main thread an alarm of the system does it, which also ends a wait. In other threads, on
    Windows, and where the program has a handler for alarms of its own, Python raises it between two
    of its instructions: that ends a loop, but no wait. Neither ends a call into C that hangs.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and hasattr(signal, "setitimer") and signal.getsignal(signal.SIGALRM) in _UNUSED:
        with _alarm(error, left):
            yield
    else:
        with _watch(error, left):
            yield


_UNUSED = (signal.SIG_DFL, signal.SIG_IGN)


@contextmanager
def _alarm(error: type[BaseException], left: Callable[[], float]) -> Iterator[None]:
    def ring(*_: object) -> None:
        if (seconds := left()) > 0:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        else:
            raise error

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(left(), 1e-3))  # 0 would be none
        yield
    finally:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
        finally:  # also where it rings just now
            signal.signal(signal.SIGALRM, before)


@contextmanager
def _watch(error: type[BaseException], left: Callable[[], float]) -> Iterator[None]:
    import ctypes  # noqa: PLC0415  needed only here

    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    watched, over = ctypes.c_ulong(threading.get_ident()), threading.Event()

    def watch() -> None:
        while (seconds := left()) > 0:
            if over.wait(seconds):
                return
        raise_in(watched, ctypes.py_object(error))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        raise_in(watched, None)  # what it asked for and has not come yet shall not come later
