"""Timing several programs against each other: turn by turn, so that all meet the same machine."""

import statistics
import time
from collections.abc import Callable, Mapping

Program = Callable[[], object]
TURNS = 5  # at least


def interleaved(programs: Mapping[str, Program], *, seconds: float) -> dict[str, float]:
    """Return the median seconds of each program; they run turn by turn for `seconds` in all.

    One turn to warm up is not counted.

    >>> sorted(interleaved({"a": lambda: None, "b": lambda: None}, seconds=0.0))
    ['a', 'b']
    """
    times: dict[str, list[float]] = {name: [] for name in programs}
    for program in programs.values():
        program()
    began = time.perf_counter()
    turns = 0
    while turns < TURNS or time.perf_counter() - began < seconds:
        for name, program in programs.items():
            times[name].append(_seconds(program))
        turns += 1
    return {name: statistics.median(taken) for name, taken in times.items()}


def _seconds(program: Program) -> float:
    start = time.perf_counter()
    program()
    return time.perf_counter() - start
