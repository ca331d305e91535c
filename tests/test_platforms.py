"""What platforms lack: names that Windows does not have, and limits that machines do not tell."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from bnkit import platforms
from bnkit.platforms import ending, memory_share

GIB = 2**30


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return how to make a machine of 64 GiB with these files of control groups."""

    def make(groups, limits):
        files = {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{k}": v for k, v in limits.items()}}
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

    limits_of = platforms._limits_of_control_groups
    monkeypatch.setattr(platforms, "_limits_of_control_groups", lambda: limits_of(tmp_path))
    monkeypatch.setattr(platforms, "_memory_of_machine", lambda: 64 * GIB)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.delenv(platforms.JOBS, raising=False)
    return make


@pytest.mark.parametrize(
    ("groups", "limits", "share"),
    [
        ("", {}, 64),
        ("0::/\n", {"memory.max": f"{8 * GIB}\n"}, 8),
        ("0::/\n", {"memory.max": "max\n"}, 64),
        ("0::/job/step\n", {"job/step/memory.max": "max", "job/memory.max": str(4 * GIB)}, 4),
        (
            "0::/job/step\n",
            {"job/step/memory.max": str(2 * GIB), "job/memory.max": str(4 * GIB)},
            2,
        ),
        ("0::/outside\n", {"memory.max": str(3 * GIB)}, 3),  # a container's own root
        ("5:cpu:/x\n4:memory:/x\n", {"memory/x/memory.limit_in_bytes": str(6 * GIB)}, 6),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": str(2**63 - 4096)}, 64),
    ],
)
def test_a_process_counts_on_what_its_control_groups_allow(groups, limits, share, machine):
    machine(groups, limits)
    assert memory_share() == share * GIB


@pytest.mark.usefixtures("machine")
def test_a_machine_without_control_groups_is_all_there_is():
    assert memory_share() == 64 * GIB


@pytest.mark.parametrize(("processes", "share"), [("4", 16), ("1", 64), ("", 64), ("many", 64)])
def test_the_processes_of_a_machine_share_its_memory(processes, share, machine, monkeypatch):
    machine("", {})
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert memory_share() == share * GIB


def test_the_workers_of_a_comparison_share_its_memory(machine, monkeypatch):
    machine("", {})
    monkeypatch.setenv(platforms.JOBS, "8")
    assert memory_share() == 8 * GIB


def test_without_sysconf_some_memory_is_assumed(monkeypatch):
    monkeypatch.setattr(platforms, "_limits_of_control_groups", lambda: iter(()))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.delattr(os, "sysconf")
    assert memory_share() == 8 * GIB


def test_all_of_bnkit_is_imported_and_trains_where_these_names_are_missing():
    program = """
import os, signal, sys, torch, joblib
sys.modules['fcntl'] = None
del os.register_at_fork, os.sysconf, signal.pthread_sigmask, os.fork
import bnkit, bnkit.cli, bnkit.experiments.processes, bnkit.kernels.memory
x = torch.randn(64, 64, 32, 32, requires_grad=True)
bnkit.BatchNorm2d(64, activation="relu")(x).sum().backward()
assert bnkit.kernels.memory.idle_limit() > 0
"""
    subprocess.run([sys.executable, "-c", program], check=True)


class TooLateError(BaseException):
    pass


def spin():
    while True:
        pass


def wait():
    threading.Event().wait()


def ended_in(seconds, block):
    """Return whether a block is ended after so many seconds, with no thread left behind."""
    ends, threads = time.perf_counter() + seconds, {*threading.enumerate()}
    try:
        with ending(TooLateError, lambda: ends - time.perf_counter()):
            block()
    except TooLateError:
        return {*threading.enumerate()} == threads and time.perf_counter() > ends
    return None


def test_a_loop_and_a_wait_of_the_main_thread_are_ended():
    assert ended_in(0.1, spin)
    assert sys.platform == "win32" or ended_in(0.1, wait)


def test_a_loop_of_another_thread_is_ended():
    with ThreadPoolExecutor(1) as other:
        assert other.submit(ended_in, 0.1, spin).result()


@pytest.mark.parametrize("here", [True, False])
def test_the_time_that_is_left_is_asked_for_again(here):
    asked = []

    def left():
        asked.append(None)
        return 0.05 if len(asked) < 4 else 0.0

    def run():
        with pytest.raises(TooLateError), ending(TooLateError, left):
            spin()

    with ThreadPoolExecutor(1) as other:
        run() if here else other.submit(run).result()
    assert len(asked) == 4


@pytest.mark.parametrize("here", [True, False])
def test_what_ends_in_time_leaves_no_alarm(here):
    with ThreadPoolExecutor(1) as other:
        assert (ended_in(60, dir) if here else other.submit(ended_in, 60, dir).result()) is None
    if hasattr(signal, "setitimer"):
        assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no alarms")
def test_alarms_that_the_program_has_of_its_own_are_left_alone():
    rung = []
    signal.signal(signal.SIGALRM, lambda *_: rung.append(None))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert ended_in(0.2, spin)
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert rung == [None]
