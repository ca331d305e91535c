import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bnkit.experiments import leases as module
from bnkit.experiments.leases import Leases


class Clock:
    """The watcher's own clock, which a test moves on."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def move_on(self, seconds, step=5.0):
        """Let time pass in steps; yield after each, as for a look."""
        end = self.now + seconds
        while self.now < end:
            self.now += step
            yield


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def of_elsewhere(folder, key, generation=1, **changed):
    """Write the lease of a process on another machine, and return its file."""
    holder = replace(Leases(folder)._self, host="node7", machine="another boot", **changed)
    path = folder / f"{key}.lease.{generation}"
    path.write_text(json.dumps({**asdict(holder), "beat": "0000000000"}))
    return path


def test_a_trial_is_claimed_by_one(tmp_path):
    one, other = Leases(tmp_path), Leases(tmp_path)
    assert [one.take("k"), other.take("k")] == [True, False]
    assert one.deaths("k") == 0
    assert other.holder("k") == one._self
    assert names(tmp_path) == ["k.lease.1"]
    one.give_up("k")
    assert other.take("k")
    other.finish("k")
    assert names(tmp_path) == []
    assert other.holder("k") is None


def test_who_shows_no_sign_of_life_for_a_minute_of_the_watchers_clock_is_dead(tmp_path, clock):
    of_elsewhere(tmp_path, "k")
    watcher = Leases(tmp_path)
    looks = [watcher.take("k") for _ in clock.move_on(60)]
    assert looks == [False] * 12
    clock.now += 5
    assert watcher.take("k")
    assert watcher.deaths("k") == 1
    assert names(tmp_path) == ["k.lease.1", "k.lease.2"]


def test_whatever_the_times_of_files_say_who_writes_lives(tmp_path, clock):
    path = of_elsewhere(tmp_path, "k")
    watcher = Leases(tmp_path)
    for beat, _ in enumerate(clock.move_on(600)):
        if beat % 10 == 0:
            path.write_text(path.read_text().replace("0}", "1}").replace("beat", f"beat{beat}"))
        os.utime(path, (0, 0))
        assert not watcher.take("k")


def test_a_watcher_that_slept_begins_to_watch_anew(tmp_path, clock):
    of_elsewhere(tmp_path, "k")
    watcher = Leases(tmp_path)
    assert not watcher.take("k")
    clock.now += 3600  # as after SIGSTOP, or a laptop's lid
    assert not watcher.take("k")
    assert not any(watcher.take("k") for _ in clock.move_on(55))


def test_two_that_watch_the_same_dead_one_cannot_both_follow_it(tmp_path, clock):
    of_elsewhere(tmp_path, "k")
    one, other = Leases(tmp_path), Leases(tmp_path)
    for _ in clock.move_on(65):
        latest = other._latest("k")
        taken = [one.take("k"), other._claim("k", latest + 1) if one._held else other.take("k")]
    assert taken == [True, False]
    assert names(tmp_path) == ["k.lease.1", "k.lease.2"]


def test_a_process_of_this_machine_that_has_ended_is_dead_at_once(tmp_path):
    program = (
        "import sys, os; from pathlib import Path; from bnkit.experiments.leases import Leases; "
        "Leases(Path(sys.argv[1])).take('k'); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    path = tmp_path / "k.lease.1"
    holder = module._parsed(path.read_bytes())
    left = [f"/dev/shm/sem.loky-{holder.process}-{name}" for name in ("a1", "b2")]
    for name in left:
        Path(name).touch()
    watcher = Leases(tmp_path)
    assert watcher.holder("k") is None
    assert watcher.take("k")
    assert not any(Path(name).exists() for name in left)


def test_a_process_that_got_the_number_of_a_dead_one_is_another(tmp_path):
    holder = replace(Leases(tmp_path)._self, start="1")
    (tmp_path / "k.lease.1").write_text(json.dumps(asdict(holder)))
    assert Leases(tmp_path).take("k")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"host": 3}', b"\xff"])
def test_a_lease_that_is_half_written_is_watched_like_any_other(tmp_path, clock, content):
    (tmp_path / "k.lease.1").write_bytes(content)
    watcher = Leases(tmp_path)
    assert watcher.holder("k") is None
    assert not any(watcher.take("k") for _ in clock.move_on(60))
    clock.now += 5
    assert watcher.take("k")


def test_holders_write_and_give_up_at_the_end_whatever_happens(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT", 0.01)
    path = tmp_path / "k.lease.1"
    with suppress(KeyError), Leases(tmp_path).kept_alive() as leases:
        assert leases.take("k")
        before = path.read_bytes()
        deadline = time.monotonic() + 10
        while path.read_bytes() == before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.read_bytes() != before
        assert len(path.read_bytes()) == len(before)
        assert Leases(tmp_path).holder("k") == leases._self
        raise KeyError
    assert names(tmp_path) == []


def test_a_holder_whose_trial_another_finished_does_not_make_its_lease_again(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT", 0.01)
    with Leases(tmp_path).kept_alive() as leases:
        assert leases.take("k")
        Leases(tmp_path).finish("k")
        time.sleep(0.1)
        assert names(tmp_path) == []


def test_deaths_are_counted_also_by_who_goes_on(tmp_path):
    leases = Leases(tmp_path)
    assert leases.take("k")
    assert leases.count_death("k")
    assert leases.deaths("k") == 1
    leases.give_up("k")  # as at Ctrl-C: the first death stays
    assert names(tmp_path) == ["k.lease.1"]


def test_a_death_of_what_another_has_taken_over_is_not_counted_twice(tmp_path):
    leases = Leases(tmp_path)
    assert leases.take("k")
    of_elsewhere(tmp_path, "k", 2)
    assert not leases.count_death("k")
    assert names(tmp_path) == ["k.lease.1", "k.lease.2"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_claim_that_fails_leaves_no_lease_that_would_count_as_a_death(
    tmp_path, monkeypatch, error
):
    leases = Leases(tmp_path)

    def fail():
        raise error

    monkeypatch.setattr(leases, "_content", fail)
    with pytest.raises(type(error)):
        leases.take("k")
    assert names(tmp_path) == []
    monkeypatch.undo()
    assert leases.take("k")
    assert leases.deaths("k") == 0


def test_who_was_seen_to_be_dead_stays_so_while_the_watcher_runs_other_trials(tmp_path, clock):
    paths = [of_elsewhere(tmp_path, key) for key in ("k", "l", "m")]
    watcher = Leases(tmp_path)
    for _ in clock.move_on(65):
        seen = [watcher._is_dead(path) for path in paths]
    assert seen == [True] * 3
    assert watcher.take("k")
    clock.now += 600  # of the trial that it ran
    assert watcher.take("l")
    paths[2].write_text(paths[2].read_text().replace("0}", "1}").replace('0"}', '1"}'))
    assert not watcher.take("m")  # it was alive after all
