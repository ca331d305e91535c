"""What not every platform has, the memory of a process and forks, with what serves there."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
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
