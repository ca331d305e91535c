import itertools

import pytest

from bnkit.benchmarking import measuring
from bnkit.benchmarking.measuring import TURNS, interleaved


class Clock:
    """A clock that stands still unless a program takes time."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def program(self, *seconds):
        """Return a program that takes these times, one after the other, and then the last."""
        times = itertools.chain(seconds, itertools.repeat(seconds[-1]))

        def run():
            self.now += next(times)

        return run


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(measuring, "time", clock)
    return clock


def test_programs_run_turn_by_turn():
    seen = []
    interleaved({name: lambda name=name: seen.append(name) for name in "abc"}, seconds=0.0)
    assert "".join(seen) == "abc" * (1 + TURNS)  # one turn to warm up


def test_the_median_is_returned_without_the_first_run(clock):
    # The first is to warm up: compiled and loaded things make it long.
    found = interleaved({"a": clock.program(100, 1, 2, 3, 40, 50)}, seconds=0.0)
    assert found == {"a": 3}


def test_they_run_until_the_time_is_over(clock):
    turns = []

    def counted():
        turns.append(clock.program(1)())

    assert interleaved({"a": counted}, seconds=20.0) == {"a": 1}
    assert len(turns) == 1 + 20


def test_a_slow_program_runs_the_least_number_of_turns(clock):
    turns = []
    slow = clock.program(10)
    interleaved({"a": lambda: turns.append(slow())}, seconds=1.0)
    assert len(turns) == 1 + TURNS


def test_each_program_has_its_own_time(clock):
    programs = {"slow": clock.program(5), "fast": clock.program(1)}
    assert interleaved(programs, seconds=0.0) == {"slow": 5, "fast": 1}
