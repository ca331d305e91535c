"""`TrialLogs`: the numbers of trials while they run, from their processes to a bar and a logger."""

import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from bnkit.experiments.metrics import Metric
from bnkit.experiments.results import TrialResult
from bnkit.monitoring.recorder import Writer, writing
from bnkit.references import message_of

Log = Writer | Literal["tensorboard"]
Numbers = Mapping[str, float | None]  # of one step, by their names
Tell = Callable[[int, Numbers], object]


class Named(Protocol):
    """A trial, as far as its numbers are told of."""

    @property
    def key(self) -> str:
        """What names its file."""

    @property
    def name(self) -> str:
        """What it is, for people, with commas between its parts."""


@contextmanager
def telling(folder: Path | None, key: str) -> Iterator[Tell]:
    """Give, to the process of a trial, what tells its numbers of a step to the `TrialLogs`.

    Without a folder, or on a machine that does not share it, nothing is told before the result.
    """
    if folder is None or not folder.is_dir():
        yield lambda _step, _numbers: None
        return
    path = folder / f"{key}.jsonl"

    def tell(step: int, numbers: Numbers) -> None:
        # Where the disk is full the news of a trial is lost, which its result brings later.
        with suppress(OSError), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")

    with suppress(OSError):  # what a process that died has told is told again
        path.unlink(missing_ok=True)
    yield tell


class TrialLogs:
    """Hands on what the trials of a sweep tell: to `log`, and as a note to a progress bar.

    Their processes write into `folder`. `log` takes each number under a tag such as
    "accuracy/batch-norm/relu/learning-rate-0.1/seed-0"; "tensorboard" has a folder for each trial
    in the folder `boards`. What a logger raises is warned of once, and it gets nothing more.
    """

    def __init__(self, folder: Path, metric: Metric, *, log: Log | None, boards: Path) -> None:
        self.folder = folder
        self._metric, self._log, self._boards = metric, log, boards
        self._trials: dict[str, _Told] = {}
        self._write = None
        if log == "tensorboard":
            _summary_writer()  # its error comes before anything runs
        elif isinstance(log, str):
            raise ValueError(f"`log` is {log!r}: pass 'tensorboard', or a writer of your own")
        elif log is not None:
            self._write = writing(log, "log")

    def add(self, trials: Iterable[Named]) -> None:
        """Take these trials, too, which may tell from now on."""
        self._trials |= {trial.key: _Told(trial.name) for trial in trials}
        if self._trials:
            self.folder.mkdir(parents=True, exist_ok=True)

    def look(self) -> str:
        """Hand on what is new; return what the last trial says, "" for nothing."""
        files = {path.stem: path for path in sorted(self.folder.glob("*.jsonl"))}
        running = [(path, self._trials[key]) for key, path in files.items() if key in self._trials]
        for path, trial in running:
            self._read(path, trial)
        return running[-1][1].latest(self._metric) if running else ""

    def end(self, result: TrialResult) -> None:
        """Hand on what is left of a trial that has ended."""
        trial = self._trials.pop(result.key, None)
        if trial is None:
            return
        path = self.folder / f"{result.key}.jsonl"
        self._read(path, trial)
        path.unlink(missing_ok=True)
        curve, before = result.curve, trial.step
        for step, loss, value in zip(curve.steps, curve.loss, curve.metric, strict=True):
            if step > before:
                self._hand_on(trial, step, {"loss": loss, self._metric.name: value})
        trial.close()

    def close(self) -> None:
        """Leave the trials that still run, as other processes do, alone."""
        for trial in self._trials.values():
            trial.close()
        with suppress(OSError):  # it is not there, or another process has trials in it
            self.folder.rmdir()

    def _read(self, path: Path, trial: "_Told") -> None:
        try:
            # What stands after the last end of a line is still being written.
            *lines, _ = path.read_text(encoding="utf-8").split("\n")
        except FileNotFoundError:  # it has ended, or ran where the folder is not
            return
        if len(lines) < trial.lines:  # its process died, and it has begun again
            trial.lines = 0
        for line in lines[trial.lines :]:
            with suppress(ValueError):  # cut short, where the disk was full
                numbers = json.loads(line)
                self._hand_on(trial, numbers.pop("step"), numbers)
        trial.lines = len(lines)

    def _hand_on(self, trial: "_Told", step: int, numbers: Numbers) -> None:
        known = {name: value for name, value in numbers.items() if value is not None}
        trial.step, trial.numbers = step, {**trial.numbers, **known}
        if self._log is None:
            return
        try:
            if self._write is not None:
                self._write({f"{name}/{trial.tag}": value for name, value in known.items()}, step)
                return
            if trial.board is None:
                # What a run before that was interrupted has written of this trial does not show.
                trial.board = _summary_writer()(str(self._boards / trial.tag), purge_step=0)
            for name, value in known.items():
                trial.board.add_scalar(name, value, step)
        except Exception as error:  # noqa: BLE001  it may be anything, and the trials go on
            self._log = None
            warnings.warn(
                f"`log` fails ({message_of(error)}): it gets nothing more, and the trials go on",
                stacklevel=2,
            )


@dataclass
class _Told:
    """What a trial has told so far: `lines` of its file, the last step, the last numbers."""

    name: str
    lines: int = 0
    step: int = -1
    numbers: dict[str, float] = field(default_factory=dict)
    board: Any = None

    @property
    def tag(self) -> str:
        """Its name as loggers take it: letters, digits, dots and dashes, with slashes between."""
        parts = [part for part in self.name.split(", ") if part != "as built"]
        return "/".join(re.sub(r"[^\w.]+", "-", part).strip("-") for part in parts)

    def latest(self, metric: Metric) -> str:
        """Return what it is and how far, "" where it has told nothing yet."""
        if self.step < 0:
            return ""
        value = self.numbers.get(metric.name)
        shown = "" if value is None else f", {metric.name} {metric.written(value)}"
        return f"{self.name}: step {self.step:,}{shown}"

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  needed only here
    except ImportError as error:
        raise ModuleNotFoundError(
            "`log` is 'tensorboard', which is not installed: pip install tensorboard, or pass a "
            "writer of your own"
        ) from error
    return SummaryWriter
