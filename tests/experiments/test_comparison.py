import dataclasses
import importlib
import inspect
import json
import os
import re
import subprocess
import sys

import pytest
import torch

import bnkit
import users
from bnkit.experiments import sweep
from bnkit.experiments.comparison import plan_comparison
from bnkit.experiments.results import SIDES, Curve
from bnkit.experiments.settings import Settings
from bnkit.experiments.sweep import Interrupted
from bnkit.surgery import plan_addition

BRIEF = {"learning_rates": [0.1, 1.0], "seeds": 2, "steps": 4, "evaluate_every": 2}


def planned(build=users.build, data=users.loaders, *, out="unused", data_folder=None, **settings):
    options = Settings(**{**BRIEF, **settings})
    return plan_comparison(build, data, settings=options, out=out, data_folder=data_folder)


def keys(*args, **options):
    return {trial.key for trial in planned(*args, **options).trials}


# What a trial's name depends on

NAMED = {"activations": ["relu"], "hidden": [8]}


def test_the_same_comparison_has_the_same_names_again():
    assert keys() == keys()
    assert keys("mlp", "digits", **NAMED) == keys("mlp", "digits", **NAMED)


def test_each_trial_has_its_own_name():
    sweep = planned("mlp", "digits", activations=["relu", "tanh"], hidden=[8])
    assert len(sweep.trials) == 2 * 2 * 2 * 2  # activations, seeds, sides, rates
    assert len({trial.key for trial in sweep.trials}) == len(sweep.trials)


@pytest.mark.parametrize(
    "more",
    [
        {"seeds": 3},
        {"learning_rates": [0.1, 0.5, 1.0]},
        {"activations": ["tanh", "relu"]},
        {"target": 0.5},
    ],
)
def test_a_larger_sweep_or_another_target_uses_the_trials_that_are_there(more):
    assert keys("mlp", "digits", **NAMED) <= keys("mlp", "digits", **{**NAMED, **more})


def test_names_do_not_depend_on_jobs_or_on_the_folder(tmp_path):
    assert keys(out=tmp_path) == keys()


@pytest.mark.parametrize(
    "other",
    [
        {"steps": 5},
        {"epochs": 1},
        {"evaluate_every": 1},
        {"optimizer": "momentum"},
        {"loss": "sigmoid-cross-entropy"},
        {"init": "he"},
        {"batch_size": 30},
        {"shuffle": False},
        {"hidden": [9]},
        {"placement": "after_activation"},
        {"momentum": 0.2},
        {"eps": 1e-3},
        {"training_mode_accuracy": True},
    ],
    ids=str,
)
def test_every_other_setting_makes_other_trials(other):
    assert not keys("mlp", "digits", **NAMED) & keys("mlp", "digits", **{**NAMED, **other})


def test_another_network_or_other_data_make_other_trials():
    noisy = [(x + 1e-6, y) for x, y in users.cut(users.TRAIN)]
    test = users.cut(users.TEST)
    variants = [
        keys(),
        keys(users.build_with_dropout),
        keys(data=users.data_loaders),
        keys(data=lambda: (noisy, test)),
        keys(data=lambda: (test, noisy)),
        keys("mlp", "digits", **NAMED),
        keys("logistic", "digits", activations=["relu"]),
    ]
    assert len(set().union(*variants)) == sum(map(len, variants))


def test_other_versions_make_other_trials(monkeypatch):
    before = keys()
    monkeypatch.setattr(torch, "__version__", "9.0")
    assert not before & keys()


SOURCE = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    def forward(self, x):
        return scaled(self.layers(x))
def scaled(y):
    return 1 * y
def build():
    net = Net()
    return net
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("net = Net()", "net = Net().float()"),
        ("return scaled(self.layers(x))", "return self.layers(x)"),
        ("1 * y", "2 * y"),
    ],
    ids=["its body", "forward of its class", "a function beside it"],
)
def test_an_edited_build_never_gets_the_old_numbers(tmp_path, monkeypatch, old, new):
    # None of these edits changes an initial array or the structure that repr shows.
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for text in (SOURCE, SOURCE, SOURCE.replace(old, new)):
        (tmp_path / "own_edited.py").write_text(text)
        importlib.invalidate_caches()
        sys.modules.pop("own_edited", None)
        module = importlib.import_module("own_edited")
        found.append(keys(module.build))
    sys.modules.pop("own_edited")
    assert found[0] == found[1]
    assert not found[0] & found[2]


# Planning


def test_nothing_is_written_before_trials_run(tmp_path):
    planned(out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_planning_leaves_the_generators_of_the_caller_alone():
    state = torch.get_rng_state()
    planned(users.build_with_dropout, users.data_loaders)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_settings_that_apply_are_described_and_the_others_are_not():
    described = planned(epochs=3).description
    assert described["network"] == "users:build"
    assert described["steps"] == 18  # three epochs of six batches
    assert not {"hidden", "activations", "batch_size", "shuffle"} & described.keys()
    assert {"hidden", "batch_size"} <= planned("mlp", "digits", **NAMED).description.keys()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("mlp", "digits"), {"hidden": []}, "nothing in this model can be normalised"),
        (("mlp", "digits"), {"activations": ["rleu"]}, "unknown activation 'rleu': did you mean"),
        (("mlp", "digits"), {"batch_size": 5000}, "`batch_size` is 5000: choose 1 to 1437"),
        (
            ("mlp", "mnist"),
            {"data_folder": "nowhere"},
            "nowhere does not exist: give another as --data-dir",
        ),
        (("dlology", "digits"), {}, "network 'dlology' needs images of at least 18×18 pixels"),
        ((users.build, "digits"), {}, "a training batch does not fit the network"),
    ],
)
def test_what_cannot_be_compared_is_refused_and_nothing_is_written(
    tmp_path, arguments, options, message
):
    with pytest.raises(ValueError, match=re.escape(message)):
        planned(*arguments, out=tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("jobs", [0, -1, 1.5])
def test_jobs_are_whole_and_positive(tmp_path, jobs):
    sweep = planned(out=tmp_path / "out")
    with pytest.raises(ValueError, match=f"`jobs` is {jobs}: pass an integer ≥ 1"):
        sweep.run(jobs=jobs)
    assert list(tmp_path.iterdir()) == []


# Running


@pytest.fixture
def in_this_process(monkeypatch):
    """Run trials here and now, and return what was asked for; processes have their own tests."""
    asked = []

    def run(trials, store, *, jobs, on_result, **_others):
        asked.append(jobs)
        results = {trial.key: trial.run() for trial in trials}
        for result in results.values():
            store.save(result)
            on_result(result)
        return results

    monkeypatch.setattr(sweep, "run_trials", run)
    return asked


@pytest.mark.usefixtures("in_this_process")
def test_a_sweep_gives_every_trial_in_the_order_of_activations_seeds_and_sides(tmp_path):
    found = planned(out=tmp_path).run(progress=False)
    order = [(t.seed, t.side, t.learning_rate) for t in found.trials]
    assert order == [(s, side, lr) for s in range(2) for side in SIDES for lr in (0.1, 1.0)]
    assert {t.outcome for t in found.trials} == {"finished"}
    assert found.settings["learning_rates"] == [0.1, 1.0]
    assert found.environment["torch"] == torch.__version__


def test_the_recipe_is_the_plan_the_code_and_the_network():
    recipe = planned(placement="after_activation", eps=1e-3).recipe
    model, example = users.build(), next(iter(users.loaders()[0]))[0]
    assert recipe.network == str(model)
    names = {"bnkit": bnkit, "model": model, "example": example}
    exec(recipe.code, names)
    placed = bnkit.add(model, example, placement="after_activation", eps=1e-3)
    assert str(names["model"]) == str(placed)
    plan = plan_addition(model, example, placement="after_activation", eps=1e-3)
    assert recipe.plan == (
        *((edit.layer, edit.kind, edit.action, edit.why) for edit in plan.edits),
        *((left.layer, left.kind, "left alone", left.why) for left in plan.left_alone),
    )


def test_a_network_with_a_twin_of_its_own_has_no_code_to_copy():
    recipe = planned("logistic", "digits", activations=["relu"]).recipe
    assert (recipe.plan, recipe.code, recipe.activation) == ((), "", "relu")


def test_one_job_a_core_is_the_default(tmp_path, monkeypatch, in_this_process):
    monkeypatch.setattr(sweep, "usable_cores", lambda: 7)
    planned(out=tmp_path).run(progress=False)
    planned(out=tmp_path).run(progress=False, jobs=3)
    assert in_this_process == [7, 3]


@pytest.mark.usefixtures("in_this_process")
def test_collecting_takes_what_is_there_none_some_or_all(tmp_path):
    sweep = planned(out=tmp_path)
    assert {t.outcome for t in sweep.collect().trials} == {"not run"}
    assert list(tmp_path.iterdir()) == []
    sweep.store.prepare([])
    sweep.store.save(sweep.trials[3].run())
    some = [t.outcome for t in sweep.collect().trials]
    assert some == ["not run"] * 3 + ["finished"] + ["not run"] * 4
    found = sweep.run(progress=False)
    assert {t.outcome for t in found.trials} == {"finished"}
    assert sweep.collect().trials == found.trials


@pytest.mark.usefixtures("in_this_process")
def test_a_larger_sweep_runs_only_what_is_new(tmp_path):
    first = planned(out=tmp_path).run(progress=False)
    second = planned(out=tmp_path, seeds=3, target=0.5).run(progress=False)
    kept = [t for t in second.trials if t.seed < 2]
    assert kept == list(first.trials)  # wall times and all
    assert second.target == 0.5


@pytest.mark.usefixtures("in_this_process")
def test_failed_and_damaged_trials_are_tried_anew(tmp_path):
    sweep = planned(out=tmp_path)
    first, second, *_ = sweep.trials
    sweep.store.prepare([])
    sweep.store.save(first.failed("out of memory"))
    (sweep.store.folder / f"{second.key}.json").write_text("{")
    with pytest.warns(UserWarning, match="is damaged") as warned:
        found = sweep.run(progress=False)
    assert len(warned) == 1
    assert {t.outcome for t in found.trials} == {"finished"}


def test_ctrl_c_gives_what_had_finished(tmp_path, monkeypatch):
    def interrupted(trials, store, **_options):
        store.save(trials[0].run())
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "run_trials", interrupted)
    with pytest.raises(Interrupted) as interruption:
        planned(out=tmp_path).run(progress=False)
    outcomes = [t.outcome for t in interruption.value.comparison.trials]
    assert outcomes == ["finished"] + ["not run"] * 7
    assert isinstance(interruption.value, KeyboardInterrupt)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/trials cannot be written \(Not a directory\): choose"):
        planned(out=tmp_path / "file").run(progress=False)


# From Python


def test_compare_takes_functions_that_no_file_holds(tmp_path):
    width = 8
    found = bnkit.compare(
        lambda: torch.nn.Sequential(
            torch.nn.Linear(4, width), torch.nn.ReLU(), torch.nn.Linear(width, 3)
        ),
        lambda: (users.cut(users.TRAIN), users.cut(users.TEST)),
        **{**BRIEF, "seeds": 1, "learning_rates": [0.1]},
        jobs=1,
        progress=False,
        out=tmp_path / "kept",
    )
    assert [t.outcome for t in found.trials] == ["finished"] * 2
    assert found.command == "bnkit.compare(...)"
    assert len(list((tmp_path / "kept" / "trials").glob("*.json"))) == 2
    assert "batch norm" in str(found)


SCRIPT = """
import signal
{before}
import bnkit, users
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = users.build()
    def forward(self, x):
        return scaled(self.layers(x))

def scaled(y):
    return 2 * y

def loaders():
    return users.cut(users.TRAIN), users.cut(users.TEST)

brief = dict(learning_rates=[0.1], seeds=1, steps=4, jobs=1, progress=False)
print(*[trial.outcome for trial in bnkit.compare(Net, loaders, **brief).trials])
"""


@pytest.mark.parametrize("before", ["", "del signal.pthread_sigmask"], ids=["", "as on Windows"])
def test_compare_takes_what_a_script_holds_which_no_other_process_imports(tmp_path, before):
    (tmp_path / "script.py").write_text(SCRIPT.format(before=before))
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("finished finished\n", "")


@pytest.mark.usefixtures("in_this_process")
def test_compare_hands_its_options_on(tmp_path):
    options = {"learning_rates": [0.3], "steps": 3, "momentum": 0.5, "target": 0.2}
    found = bnkit.compare(users.build, users.loaders, **options, out=tmp_path, progress=False)
    assert found.target == 0.2
    assert {name: found.settings[name] for name in options} == options


@pytest.mark.usefixtures("in_this_process")
def test_compare_keeps_nothing_unless_a_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep.tempfile, "tempdir", str(tmp_path))
    found = bnkit.compare(users.build, users.loaders, **BRIEF, progress=False)
    assert len(found.trials) == 8
    assert list(tmp_path.iterdir()) == []


def test_compare_has_every_setting_with_its_default():
    options = inspect.signature(bnkit.compare).parameters
    for field in dataclasses.fields(Settings):
        assert options[field.name].default == field.default, field.name


def test_compare_answers_an_unknown_option_with_near_ones():
    message = r"^compare: unknown option 'lerning_rates': did you mean 'learning_rates'\? Choose "
    with pytest.raises(TypeError, match=message):
        bnkit.compare("mlp", "digits", lerning_rates=[0.1])


def test_compare_refuses_wrong_values_as_the_settings_do():
    with pytest.raises(ValueError, match=r"^`steps` is 0: pass an integer ≥ 1$"):
        bnkit.compare("mlp", "digits", steps=0)


@pytest.mark.usefixtures("in_this_process")
def test_results_of_an_older_version_are_run_again_and_that_is_said(tmp_path):
    sweep = planned(out=tmp_path)
    found = sweep.run(progress=False)
    for trial in found.trials[:3]:
        path = sweep.store.folder / f"{trial.key}.json"
        path.write_text(json.dumps({**trial.to_json(), "metric": 0.125}))
    with pytest.warns(UserWarning, match="^results of another version of bnkit in .*trials: 3;"):
        again = sweep.run(progress=False)
    assert [t.metric for t in again.trials] == [t.metric for t in found.trials]


@pytest.mark.usefixtures("in_this_process")
def test_each_result_is_read_once_and_a_new_one_not_at_all(tmp_path, monkeypatch):
    sweep = planned(out=tmp_path)
    read, load = [], sweep.store.load
    monkeypatch.setattr(sweep.store, "load", lambda key: read.append(key) or load(key))
    for _ in range(2):
        sweep.run(progress=False)
    assert read == 2 * [trial.key for trial in sweep.trials]


def test_planning_draws_a_network_three_times_and_then_once_a_seed():
    drawn = []

    def build():
        drawn.append(0)
        return users.build()

    planned(build, seeds=3)
    assert len(drawn) == 3 + 3  # tried, drawn again to compare, shown in the report; then the seeds


# Looks and targets: `run_trials` is replaced by one that makes results up


def made_up(value, ran=None):
    """What runs trials at once: `value(side, seed)` is the metric at the end of each."""

    def run_trials(trials, store, **_):
        results = {}
        for trial in trials:
            if ran is not None:
                ran.append((trial.side, trial.seed))
            end = value(trial.side, trial.seed)
            results[trial.key] = dataclasses.replace(
                trial.not_run,
                outcome="finished",
                curve=Curve((1, 2, 3, 4), (1.0,) * 4, (0.1, 0.2, 0.3, end)),
                metric=end,
                test_metric=end,
                steps=4,
                seconds=0.4,
            )
            store.save(results[trial.key])
        return results

    return run_trials


AUTO = {"seeds": "auto", "learning_rates": [0.1], "target": 0.5}
CLEAR = {"plain": 0.6, "batch norm": 0.9}


def clearly_better(side, seed):
    return CLEAR[side] + 0.001 * (seed % 3)


def of_no_use(side, seed):
    return 0.7 + 0.2 * ((seed + SIDES.index(side)) % 2)


def test_seeds_are_added_until_the_verdict_is_reached(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "run_trials", made_up(clearly_better))
    found = planned(out=tmp_path, **AUTO).run(progress=False)
    assert len(found.seeds) == 3
    assert found.looks == 5
    assert found.verdict.answer == "helps"


def test_seeds_are_added_up_to_the_last_look(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(sweep, "run_trials", made_up(of_no_use, ran))
    found = planned(out=tmp_path, **AUTO).run(progress=False)
    assert len(found.seeds) == 20
    assert found.verdict.answer == "not shown"
    assert sorted(ran) == sorted((side, seed) for side in SIDES for seed in range(20))
    ran.clear()
    again = planned(out=tmp_path, **AUTO)
    assert again.run(progress=False).trials == found.trials
    assert ran == []
    assert again.collect().trials == found.trials


def test_a_resumed_sweep_runs_only_the_seeds_that_are_missing(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(sweep, "run_trials", made_up(of_no_use, ran))
    planned(out=tmp_path, **{**AUTO, "seeds": 5}).run(progress=False)
    assert len({seed for _, seed in ran}) == 5
    ran.clear()
    planned(out=tmp_path, **AUTO).run(progress=False)
    assert {seed for _, seed in ran} == set(range(5, 20))


def test_no_look_begins_after_the_budget_is_spent(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "run_trials", made_up(of_no_use))
    found = planned(out=tmp_path, **AUTO, budget=1e-9).run(progress=False)
    assert len(found.seeds) == 3
    assert found.verdict.answer == "not shown"


def test_collecting_stops_at_the_first_look_without_results(tmp_path):
    found = planned(out=tmp_path, **AUTO).collect()
    assert len(found.seeds) == 3
    assert found.verdict.answer == "nothing to compare"


def test_without_a_target_it_is_the_best_median_of_the_plain_side(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "run_trials", made_up(clearly_better))
    found = planned(out=tmp_path, seeds=3).run(progress=False)
    assert found.own_target
    assert found.target == pytest.approx(0.601)
    assert "60.1% held-out accuracy (the best of plain)" in str(found)
    assert found.verdict.trained == (6, 6)


def test_named_data_keep_their_target():
    assert planned("mlp", "digits", **NAMED).target == 0.9
    assert planned("mlp", "digits", **NAMED, target=0.5).target == 0.5
    assert planned("mlp", "digits", **NAMED, target="best").target is None
    assert planned().target is None


def test_a_target_that_no_accuracy_has_is_refused():
    with pytest.raises(ValueError, match=r"^`target` is 90: pass a number above 0 and up to 1$"):
        planned(target=90)


def test_before_anything_ran_the_own_target_is_unknown(tmp_path):
    found = planned(out=tmp_path).collect()
    assert found.target != found.target  # NaN
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["target"] is None
    path = bnkit.write_report(found, tmp_path / "report")
    assert "which is unknown" in path.read_text()
