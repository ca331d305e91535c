import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

import bnkit
from bnkit.lab.comparison import plan_comparison
from bnkit.lab.settings import Settings
from bnkit.lab.summary import Comparison
from tiny import X, Y, build, loaders

TINY = Settings(learning_rates=[0.1, 1.0], seeds=2, steps=4, evaluate_every=2)


def sweep(tmp_path, settings=TINY, network=build, data=loaders):
    return plan_comparison(network, data, settings=settings, out=tmp_path)


def keys(planned):
    return {trial.key for trial in planned.trials}


def without_times(comparison):
    return [replace(trial, seconds=0.0) for trial in comparison.trials]


def test_one_job_and_two_give_the_same_numbers_again(tmp_path):
    one = sweep(tmp_path / "one").run(jobs=1, progress=False)
    two = sweep(tmp_path / "two").run(jobs=2, progress=False)
    assert without_times(one) == without_times(two)
    assert len(one.trials) == 2 * 2 * 2
    assert {trial.outcome for trial in one.trials} == {"finished"}


def test_a_comparison_goes_on_where_it_stopped_with_the_same_numbers(tmp_path):
    whole = sweep(tmp_path / "whole").run(progress=False)
    partial = sweep(tmp_path / "partial")
    partial.store.prepare()
    for trial in partial.trials[:3]:
        partial.store.save(trial.run())
    assert [t.outcome for t in partial.collect().trials].count("not run") == 5
    assert without_times(partial.run(progress=False)) == without_times(whole)


def test_planning_writes_nothing_and_leaves_the_generators_alone(tmp_path):
    state = torch.get_rng_state()
    planned = sweep(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert torch.equal(torch.get_rng_state(), state)
    assert {trial.outcome for trial in planned.collect().trials} == {"not run"}
    assert not (tmp_path / "out").exists()


def test_what_only_chooses_among_trials_keeps_their_names(tmp_path):
    few = keys(sweep(tmp_path))
    assert few == keys(sweep(tmp_path, replace(TINY, target=0.5)))
    assert few < keys(sweep(tmp_path, replace(TINY, seeds=3)))
    assert few < keys(sweep(tmp_path, replace(TINY, learning_rates=[0.1, 1.0, 2.0])))


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 6},
        {"evaluate_every": 1},
        {"optimizer": "adam"},
        {"loss": "sigmoid-cross-entropy"},
        {"init": "glorot"},
        {"training_mode_accuracy": True},
        {"learning_rates": [0.2, 2.0]},
    ],
    ids=str,
)
def test_whatever_changes_all_numbers_changes_all_names(tmp_path, change):
    assert not keys(sweep(tmp_path)) & keys(sweep(tmp_path, replace(TINY, **change)))


@pytest.mark.parametrize("change", [{"momentum": 0.2}, {"eps": 1e-3}], ids=str)
def test_an_option_of_the_batch_norm_never_gives_old_numbers(tmp_path, change):
    old = {t.key for t in sweep(tmp_path).trials if t.side == "batch norm"}
    new = {t.key for t in sweep(tmp_path, replace(TINY, **change)).trials}
    assert not old & new


def test_another_network_or_other_data_never_get_old_numbers(tmp_path):
    def wider():
        return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))

    def other():
        return [(X[:20] + 1, Y[:20])], [(X[40:], Y[40:])]

    old = keys(sweep(tmp_path))
    assert not old & keys(sweep(tmp_path, network=wider))
    assert not old & keys(sweep(tmp_path, data=other))


def test_epochs_count_passes_over_the_training_data(tmp_path):
    planned = sweep(tmp_path, replace(TINY, epochs=3))
    assert planned.description["steps"] == 6
    assert {trial.training.steps for trial in planned.trials} == {6}


def test_epochs_of_a_loader_without_length_are_refused(tmp_path):
    def endless():
        return iter([(X[:20], Y[:20])] * 99), [(X[40:], Y[40:])]

    with pytest.raises(ValueError, match=r"`epochs` is 3, and .* has no length: give `steps`"):
        sweep(tmp_path, replace(TINY, epochs=3), data=endless)


def test_a_named_network_on_data_of_ones_own_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`build` is the name 'mlp' and `data` is your own"):
        sweep(tmp_path, network="mlp")


def test_the_record_is_json_and_comes_back(tmp_path):
    comparison = sweep(tmp_path).run(progress=False)
    document = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    again = Comparison.from_json(document)
    assert again.trials == comparison.trials
    assert again.verdict == comparison.verdict
    assert str(again) == str(comparison)


def test_lambdas_and_functions_of_a_program_reach_the_workers(tmp_path):
    program = """
import torch, bnkit
from torch import nn
x = torch.randn(40, 6); y = x[:, :3].argmax(1)
def build(): return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
found = bnkit.compare(build, lambda: ([(x, y)], [(x, y)]), learning_rates=[0.1], seeds=1, steps=2,
                      progress=False)
assert [trial.outcome for trial in found.trials] == ["finished"] * 2, found
print(found)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "as built" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_compare_hands_its_options_on(tmp_path):
    found = bnkit.compare(
        build,
        loaders,
        learning_rates=[0.3],
        seeds=1,
        steps=3,
        evaluate_every=3,
        momentum=0.5,
        target=0.2,
        out=tmp_path,
        progress=False,
    )
    wanted = {"learning_rates": [0.3], "steps": 3, "momentum": 0.5, "target": 0.2}
    assert wanted.items() <= {k: found.settings[k] for k in wanted}.items()
    assert found.target == 0.2
    assert len(list((tmp_path / "trials").glob("*.json"))) == 2


def test_a_network_that_the_processes_cannot_import_is_named(tmp_path):
    sys.modules["nowhere"] = module = type(sys)("nowhere")
    try:
        exec("def build(): return make()", module.__dict__)
        module.make = build
        with pytest.raises(ValueError, match="the processes cannot load `build` or `data`"):
            sweep(tmp_path, network=module.build).run(progress=False)
    finally:
        del sys.modules["nowhere"]
