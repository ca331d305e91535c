"""Ray and submitit as they are, each with two worker processes here; `make chaos` installs them."""

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import users
from bnkit.experiments.comparison import plan_comparison
from bnkit.experiments.executors import connected
from bnkit.experiments.processes import run_trials
from bnkit.experiments.settings import Settings

SOURCES = Path(__file__).parents[2] / "src"


@pytest.fixture(scope="module")
def ray_ports():
    """The ports, on the loopback interface, of a cluster of Ray and for clients from outside it."""
    pytest.importorskip("ray", reason="Ray is not installed: make chaos")
    ports = free_ports(2)
    environment = {
        **os.environ,
        "PYTHONPATH": str(SOURCES),  # as of another machine: without the paths of this program
        "PYTHONWARNINGS": "ignore",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # or on a busy machine they would hardly run
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    addresses = ["--node-ip-address=127.0.0.1", f"--port={ports[0]}"]
    options = [f"--ray-client-server-port={ports[1]}", "--num-cpus=2", "--include-dashboard=false"]
    head = subprocess.Popen(
        [*command, *addresses, *options], env=environment, stdout=subprocess.PIPE, text=True
    )
    next(line for line in head.stdout if "Ray runtime started" in line)
    yield ports
    head.terminate()
    head.communicate(timeout=60)


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(params=["ray", "ray://", "slurm"])
def engine(request, monkeypatch):
    """An address for `connected`, and options of the engine."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    if request.param == "slurm":
        pytest.importorskip("submitit", reason="submitit is not installed: make chaos")
        return "slurm", {"cluster": "local", "bundles_per_task": 1}
    cluster, clients = request.getfixturevalue("ray_ports")
    if request.param == "ray":
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{cluster}")
        return "ray", {"num_cpus": 1}
    return f"ray://127.0.0.1:{clients}", {"num_cpus": 1}


@pytest.mark.parametrize("is_killed", [False, True], ids=["", "a worker is killed"])
def test_an_engine_gives_the_numbers_and_the_keys_of_this_machine(engine, is_killed, tmp_path):
    address, options = engine
    data = users.killing_what_runs_it(tmp_path) if is_killed else users.data_loaders
    settings = Settings(seeds=2, learning_rates=[0.1], steps=4, evaluate_every=2)
    sweep = plan_comparison(users.build, data, settings=settings, out=tmp_path)
    sweep.store.prepare(trial.key for trial in sweep.trials)
    came = []
    with connected(address, tmp_path / "jobs", options) as executor:
        found = run_trials(
            sweep.trials, sweep.store, jobs=1, executor=executor, on_result=came.append
        )
    assert (tmp_path / "killed-0").exists() == is_killed
    in_order = [found[trial.key] for trial in sweep.trials]
    assert timeless(in_order) == timeless(trial.run() for trial in sweep.trials)
    assert sweep.store.results(found) == found == {result.key: result for result in came}
    assert len([*sweep.store.folder.iterdir()]) == len(sweep.trials)  # results, and no lease


def timeless(results):
    return [dataclasses.replace(result, seconds=0.0) for result in results]
