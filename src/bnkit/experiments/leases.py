"""`Leases`: who runs which trial, where several processes share one folder."""

import contextlib
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

HEARTBEAT = 10.0  # seconds between two signs of life
STALE = 60.0  # seconds without one after which a holder counts as dead
PAUSE = 20.0  # seconds; who looked away for longer knows nothing of the time between


@dataclass(frozen=True)
class Holder:
    """The process that runs a trial, as it stands in the file of its lease.

    `machine` names a running system and the processes that see one another in it, `start` tells
    apart processes that have one number after another; both are "" where the system does not say.
    """

    host: str
    machine: str
    process: int
    start: str
    since: str
    token: str

    @property
    def is_surely_dead(self) -> bool:
        """Whether it ran on this machine and does not any more; False where that is unknown."""
        here = self.machine and self.machine == _machine()
        return bool(here) and _start_of(self.process) != self.start


class _Seen(NamedTuple):
    content: bytes
    first: float
    last: float


class Leases:
    """Claims on the trials of one folder, in files that their holders rewrite while they live.

    The n-th process that runs a trial makes its file `key.lease.n`, exclusively, so that only one
    can follow a dead one. A holder is dead when its process has ended on this machine, or when
    the content of its file has not changed for `STALE` seconds of the clock of who looks on:
    times of files are not trusted. So the number of a lease counts those that died before.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, int] = {}  # the generation of each
        self._seen: dict[Path, _Seen] = {}
        self._lock = threading.Lock()
        self._beats = 0
        token = secrets.token_hex(8)
        start, now = _start_of(os.getpid()), datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        self._self = Holder(platform.node(), _machine(), os.getpid(), start, now, token)

    @contextmanager
    def kept_alive(self) -> Iterator["Leases"]:
        """Rewrite what is held in the block every few seconds; give it up at the end."""
        ended = threading.Event()
        thread = threading.Thread(target=self._beat, args=(ended,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            ended.set()
            thread.join()
            for key in [*self._held]:
                self.give_up(key)

    def take(self, key: str) -> bool:
        """Return whether the trial is this process's to run: free, or a dead one's."""
        latest = self._latest(key)
        if latest and not self._is_dead(self._path(key, latest)):
            return False
        return self._claim(key, latest + 1)

    def count_death(self, key: str) -> bool:
        """Note that what this process ran has died; return whether it still holds the trial."""
        generation = self._held.pop(key)
        return self._claim(key, generation + 1)

    def deaths(self, key: str) -> int:
        """Return how often a trial that is held here has died."""
        return self._held[key] - 1

    def finish(self, key: str) -> None:
        """Remove all traces of who ran a trial; its result is kept by now."""
        with self._lock:
            self._held.pop(key, None)
        for generation in range(1, self._latest(key) + 1):
            self._path(key, generation).unlink(missing_ok=True)

    def give_up(self, key: str) -> None:
        """Let another run a trial that is held here; the deaths in it stay counted."""
        with self._lock:
            generation = self._held.pop(key)
        with contextlib.suppress(OSError):  # a folder that cannot be written any more
            self._path(key, generation).unlink(missing_ok=True)

    def holder(self, key: str) -> Holder | None:
        """Return who runs a trial, as far as its file says; None if it is free."""
        latest = self._latest(key)
        found = _parsed(_read(self._path(key, latest))) if latest else None
        return None if found is None or found.is_surely_dead else found

    def _latest(self, key: str) -> int:
        generation = 0
        while self._path(key, generation + 1).exists():
            generation += 1
        return generation

    def _claim(self, key: str, generation: int) -> bool:
        path = self._path(key, generation)
        try:
            file = path.open("xb")
        except FileExistsError:
            return False
        try:
            with file:
                file.write(self._content())
            with self._lock:
                self._held[key] = generation
        except BaseException:  # the disk is full, or Ctrl-C: a lease of no process would stay
            path.unlink(missing_ok=True)
            raise
        return True

    def _content(self) -> bytes:
        return json.dumps({**asdict(self._self), "beat": f"{self._beats:010}"}).encode()

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(HEARTBEAT):
            with self._lock:
                self._beats += 1
                for key, generation in self._held.items():
                    # Gone if another process finished the trial; the network may be down.
                    with contextlib.suppress(OSError), self._path(key, generation).open("r+b") as f:
                        f.write(self._content())  # of equal length each time

    def _is_dead(self, path: Path) -> bool:
        content = _read(path)
        if content is None:  # it has just been finished or given up
            return False
        holder = _parsed(content)
        if holder is not None and holder.is_surely_dead:
            _remove_semaphores_of(holder.process)
            return True
        now = time.monotonic()
        seen = self._seen.get(path)
        was_dead = seen is not None and seen.last - seen.first >= STALE
        if seen is None or seen.content != content or (now - seen.last > PAUSE and not was_dead):
            seen = _Seen(content, now, now)
        self._seen[path] = seen._replace(last=now)
        return now - seen.first >= STALE

    def _path(self, key: str, generation: int) -> Path:
        return self._folder / f"{key}.lease.{generation}"


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _parsed(content: bytes | None) -> Holder | None:
    """Return the holder; None for a file that is half written or damaged."""
    try:
        fields = json.loads(content or b"")
        return Holder(**{name: fields[name] for name in Holder.__annotations__})
    except (ValueError, TypeError, KeyError):
        return None


def _machine() -> str:
    """Return what names this run of the system, and the numbering of its processes.

    Two containers may have one name and number their processes alike.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return ""


def _start_of(process: int) -> str:
    """Return when a process of this machine started, in ticks since boot; "" if there is none."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ""
    state, *fields = stat.rpartition(") ")[2].split()  # after the name, which may hold anything
    return "" if state in "ZX" else fields[18]  # proc(5): field 22, `starttime`


def _remove_semaphores_of(process: int) -> None:
    """Remove the semaphores that loky made for a process that was killed, which could not."""
    for path in Path("/dev/shm").glob(f"sem.loky-{process}-*"):  # noqa: S108  where Linux has them
        with contextlib.suppress(OSError):
            path.unlink()
