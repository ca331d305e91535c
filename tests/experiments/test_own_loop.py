"""A loop of the user's own: what its trial tells, keeps and refuses, and comparing by it."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnkit import compare
from bnkit.experiments import rehearsal
from bnkit.experiments.metrics import Metric
from bnkit.experiments.own_loop import EndOfTrial, OwnLoop, RunningTrial, own_loop
from bnkit.experiments.settings import Settings
from bnkit.surgery import SurgeryError

pytestmark = pytest.mark.usefixtures("trials_here")

X = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
Y = (X[:, :3] + X[:, 3:6]).argmax(1)
SHARE = Metric("share", higher_is_better=True)


def net():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def train(model, trial):
    optimizer = torch.optim.SGD(model.parameters(), lr=trial.learning_rate)
    for step in range(1, 31):
        chosen = torch.randint(len(X), (20,))
        loss = F.cross_entropy(model(X[chosen]), Y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        share = (model(X).argmax(1) == Y).float().mean()
        if trial.report(step, loss=loss, accuracy=share):
            break


def compared(build=net, train=train, **options):
    options = {"learning_rates": [0.1], "seeds": 1, "jobs": 1, "progress": False} | options
    return compare(build, train=train, **options)


def refused(train, error=ValueError, build=net, **options):
    with pytest.raises(error) as raised:
        compared(build, train, **options)
    return str(raised.value)


def running(*, steps=None, metric=SHARE, named=None, rehearsal=False, **settings):
    loop = OwnLoop(train, steps=steps, metric=named)
    return RunningTrial(loop, "plain", 3, settings, metric=metric, rehearsal=rehearsal)


# What a trial keeps


def test_a_trial_keeps_the_judged_metric_and_the_mean_loss_since_its_last_value():
    trial = running(named="share")
    for step, loss in enumerate((4.0, 2.0, 1.0, 3.0), start=1):
        assert not trial.report(step, loss=torch.tensor(loss))
        if step % 2 == 0:
            assert not trial.report(step, share=np.float32(step / 8), other=1)
    assert trial.curve.steps == (2, 4)
    assert trial.curve.loss == (3.0, 2.0)
    assert trial.curve.metric == (0.25, 0.5)
    assert (trial.outcome, trial.last_step) == ("finished", 4)


def test_a_trial_tells_its_side_seed_and_settings():
    trial = running(learning_rate=0.5, width=4)
    assert (trial.side, trial.seed, trial.learning_rate) == ("plain", 3, 0.5)
    assert dict(trial.settings) == {"learning_rate": 0.5, "width": 4}
    assert trial.read == {"learning_rate", "width"}
    assert running(width=4).read == set()


@pytest.mark.parametrize("values", [{"loss": float("nan")}, {"loss": 1.0, "share": float("inf")}])
def test_a_run_that_reports_what_is_not_finite_has_diverged_and_should_end(values):
    trial = running()
    assert not trial.report(1, loss=1.0, share=0.5)
    assert trial.report(2, **values)
    assert trial.outcome == "diverged"
    name, value = list(values.items())[-1]
    assert trial.reason == f"the reported {name} was {value} at step 2"
    assert None not in trial.curve.metric[:1]
    with pytest.raises(EndOfTrial):
        trial.report(3, loss=1.0)


def test_what_is_neither_loss_nor_judged_may_be_infinite():
    trial = running(named="share")
    assert not trial.report(1, share=0.5, norm=float("inf"))


def test_a_run_should_end_at_its_budget():
    trial = running(steps=20)
    assert [trial.report(step, share=0.5) for step in (10, 19, 25, 25)] == [
        False,
        False,
        True,
        True,
    ]
    assert (trial.outcome, trial.steps, running(steps=20, rehearsal=True).steps) == (
        "finished",
        20,
        1,
    )
    assert trial.curve.steps == (10, 19, 25)


@pytest.mark.parametrize(
    ("report", "error", "message"),
    [
        (lambda t: t.report(3), ValueError, r"trial.report\(3\) has no metric: name each, as in"),
        (
            lambda t: t.report(1, share=1),
            ValueError,
            "step of trial.report is 1, after 2: steps",
        ),
        (lambda t: t.report(-1, share=1), ValueError, "step of trial.report is -1, after 2"),
        (
            lambda t: t.report(2.5, share=1),
            TypeError,
            "the step of trial.report is 2.5: pass an",
        ),
        (lambda t: t.report(3, share="hi"), TypeError, "metric 'share' of trial.report is a str"),
        (lambda t: t.report(3, share=X), TypeError, r"tensor of shape \(200, 8\): pass a number"),
        (lambda t: t.report(3, other=1), ValueError, "reports 'other', which it did not in its"),
        (lambda t: t.steps, ValueError, "`train` reads trial.steps: pass `steps` to compare"),
        (lambda t: t.loaders, ValueError, "`train` reads trial.loaders: pass `data` to compare"),
        (lambda t: t.settings["width"], KeyError, "width"),
    ],
)
def test_wrong_uses_of_a_trial_say_what_to_do(report, error, message):
    trial = running()
    trial.report(2, share=0.5)
    with pytest.raises(error, match=message):
        report(trial)


# What comparing gives


def test_both_sides_run_the_loop_from_the_same_arrays_and_random_numbers():
    found = compared(learning_rates=[0.1, 0.5], seeds=2)
    asked = {*product(("plain", "batch norm"), (0.1, 0.5), (0, 1))}
    assert {(t.side, t.learning_rate, t.seed) for t in found.trials} == asked
    assert {t.outcome for t in found.trials} == {"finished"}
    assert found.metric == Metric("accuracy")
    assert all(t.curve.steps == tuple(range(1, 31)) for t in found.trials)
    # By hand, under the seed of the trial
    torch.manual_seed(1)
    model = net()
    trial = running(learning_rate=0.5, metric=Metric("accuracy"))
    torch.manual_seed(1)
    train(model, trial)
    (same,) = found.at(0.5, "as built", "plain")[1:]
    assert same.curve == trial.curve
    assert same.metric == same.test_metric == trial.curve.metric[-1]


@pytest.mark.usefixtures("in_processes")
def test_results_serve_again_until_the_loop_or_the_version_changes(tmp_path):
    first = compared(out=tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "trials").glob("*.json")}
    assert compared(out=tmp_path).trials == first.trials
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "trials").glob("*.json")} == kept
    compared(out=tmp_path, version="new files", jobs=2)
    compared(out=tmp_path, steps=10)
    assert len([*(tmp_path / "trials").glob("*.json")]) == 3 * len(kept)


def test_a_sweep_of_own_settings_gives_a_row_for_each():
    def by_width(_model, trial):
        assert trial.settings["learning_rate"] == 0.1
        trial.report(1, accuracy=trial.settings["depth"] / trial.settings["width"])

    found = compared(train=by_width, sweep={"width": [2, 4], "depth": [1]}, example=X)
    assert str(found).count("width=2, depth=1") == 1
    assert [t.metric for t in found.trials] == [0.5, 0.5, 0.25, 0.25]


def test_the_parts_that_a_loop_calls_are_normalised_each():
    found = compared(Pair, train_pair, metric="distance", higher_is_better=False)
    assert [row[:3] for row in found.recipe.plan if row[2] != "left alone"] == [
        ("generator.0", "Linear", "normalise 6 features, drop bias"),
        ("critic.0", "Linear", "normalise 5 features, drop bias"),
    ]
    assert "model.generator = bnkit.add(\n    model.generator,\n    example," in found.recipe.code
    plain, twin = found.trials
    assert twin.parameters == plain.parameters + 6 + 5  # a scale and a shift for each bias


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 3))
        self.critic = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))
        self.last = nn.Linear(1, 1)  # with nothing that could be normalised
        self.loss = nn.BCEWithLogitsLoss()


def train_pair(model, trial):
    for step in range(1, 4):
        score = model.last(model.critic(model.generator(torch.randn(8, 2))))
        loss = model.loss(score, torch.ones_like(score))
        if trial.report(step, loss=loss, distance=score.mean().abs()):
            break


def test_a_loop_may_take_its_batches_from_data_of_ours_or_its_own():
    def by_loaders(model, trial):
        train, test = trial.loaders
        (x, _), *_ = [next(iter(train))]
        model(x)
        trial.report(1, accuracy=float(x.sum()), size=len(list(test)))

    batches = [(X[:50], Y[:50]), (X[50:], Y[50:])]
    found = compared(train=by_loaders, data=lambda: (batches, batches[:1]), metric="accuracy")
    assert [t.metric for t in found.trials] == [float(X[:50].sum())] * 2
    image = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 10))  # noqa: E731
    found = compared(image, by_loaders, data="digits", metric="accuracy")
    assert found.trials[0].metric == found.trials[1].metric


def test_a_run_that_fails_or_diverges_says_why_and_others_go_on():
    def fragile(model, trial):
        model(X)
        if trial.report(1, accuracy=0.5):
            return
        if trial.side == "plain":
            raise RuntimeError("out of memory")
        trial.report(2, accuracy=float("nan"))

    plain, twin = compared(train=fragile).trials
    assert plain.outcome == "failed"
    assert plain.reason.startswith("RuntimeError: out of memory")
    assert (twin.outcome, twin.reason) == ("diverged", "the reported accuracy was nan at step 2")
    assert twin.curve.metric == (0.5, None)


def test_a_run_whose_loss_is_lost_before_its_first_metric_has_diverged():
    def unlucky(model, trial):
        model(X)
        if trial.report(1, loss=0.5 if trial.rehearsal else float("nan")):
            return
        trial.report(1, accuracy=0.5)

    for trial in compared(train=unlucky, metric="accuracy").trials:
        assert (trial.outcome, trial.reason) == ("diverged", "the reported loss was nan at step 1")
        assert (trial.metric, trial.curve.steps, trial.curve.metric) == (None, (1,), (None,))


def test_a_network_that_brings_batch_norm_is_compared_with_itself_without():
    def normalised():
        layers = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)
        return nn.Sequential(*layers)

    for options in ({}, {"example": X}):
        plain, twin = compared(normalised, **options).trials
        assert (plain.outcome, twin.outcome) == ("finished", "finished")
        assert (plain.buffers, twin.buffers) == (0, 33)
        assert twin.parameters == plain.parameters + 32


def test_batch_norm_in_a_part_that_the_rehearsal_never_calls_cannot_be_taken_out():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.later = (
                nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4)) for _ in range(2)
            )

    def one_part(model, trial):
        trial.report(1, score=model.first(X).sum())

    message = refused(one_part, SurgeryError, Pair)
    assert message.startswith("the batch norm 'later.1' lies in no part that `train` calls in its")


def test_a_loop_that_accumulates_says_at_its_first_metric_which_to_name():
    def accumulating(model, trial):
        model(X)
        if trial.report(1, loss=1.0):
            return
        trial.report(1, accuracy=0.5)

    assert "as in metric='accuracy'" in compared(train=accumulating).trials[0].reason
    assert compared(train=accumulating, metric="accuracy").trials[0].metric == 0.5


def test_a_swept_function_is_known_by_its_name_and_source_and_more_may_join(tmp_path):
    def activated(model, trial):
        trial.report(1, score=trial.settings["activation"](model(X)).sum())

    first = compared(train=activated, sweep={"activation": [F.relu]}, out=tmp_path)
    assert [trial.activation for trial in first.trials] == ["activation=relu"] * 2
    more = compared(train=activated, sweep={"activation": [F.relu, torch.tanh]}, out=tmp_path)
    assert more.trials[:2] == first.trials
    assert len(more.trials) == 4


def test_a_loop_that_goes_on_after_its_end_is_ended():
    def endless(model, trial):
        model(X)
        step = 0
        while not (trial.report(step := step + 1, accuracy=0.5) and trial.rehearsal):
            assert step <= 12, "it is ended at the next report"

    assert [t.curve.steps for t in compared(train=endless, steps=12).trials] == [
        (*range(1, 13),)
    ] * 2


def test_records_of_an_own_loop_come_back_from_json():
    found = compared()
    assert type(found).from_json(json.loads(json.dumps(found.to_json()))) == found


# What is refused before anything runs


def silent(model, _trial):
    model(X)


def blind(_model, trial):
    trial.report(1, accuracy=0.5)


def two_metrics(model, trial):
    model(X)
    trial.report(1, loss=1, accuracy=0.5, f1=0.5)


def unknown_direction(model, trial):
    model(X)
    trial.report(1, wonder=0.5)


def by_side(model, trial):
    model(X)
    trial.report(1, **{"accuracy" if trial.side == "plain" else "f1": 0.5})


def later_for_the_twin(model, trial):
    model(X)
    trial.report(1 if trial.side == "plain" else 5, accuracy=0.5)


def deaf(model, trial):
    model(X)
    for step in range(3):
        trial.report(step, accuracy=0.5)


def backwards(model, trial):
    model(X)
    trial.report(2, loss=0.5)
    trial.report(1, accuracy=0.5)


def broken(model, _trial):
    model(X[:, :3])


def not_by_groups(model, trial):
    assert not any(isinstance(module, nn.GroupNorm) for module in model.modules())
    train(model, trial)


@pytest.mark.parametrize(
    ("loop", "options", "message"),
    [
        (silent, {}, "`train` has reported nothing with the plain network: measure in its loop"),
        (blind, {}, "`train` never calls the network in its rehearsal"),
        (
            two_metrics,
            {},
            "`train` reports 'accuracy', 'f1': say which is judged, as in met",
        ),
        (
            two_metrics,
            {"metric": "auc"},
            "`metric` is 'auc', and `train` reports 'loss', 'ac",
        ),
        (unknown_direction, {}, "`metric` is 'wonder', of which it is not known whether more is"),
        (by_side, {}, "`train` reports 'accuracy' with the plain network and 'f1' with the ba"),
        (later_for_the_twin, {}, "first at step 1 with the plain network and at step 5 with the "),
        (deaf, {}, "`train` goes on with the plain network after trial.report returned True: end"),
        (backwards, {"metric": "accuracy"}, "the step of trial.report is 1, after 2: steps go for"),
        (broken, {}, "`train` fails with the plain network: RuntimeError: mat1 and mat2 shapes"),
        (blind, {"example": X, "learning_rates": [1, 2]}, "`learning_rates` has 2 values, and"),
        (blind, {"example": X, "sweep": {"width": [1]}}, "`sweep` has 'width', and `train` never"),
        (
            train,
            {"sweep": {"width": [1, "1"]}},
            "`sweep` has width=1, width=1: pass each value onc",
        ),
        (train, {"sweep": {"learning_rate": [1]}}, "`sweep` has 'learning_rate': pass its values"),
        (
            None,
            {"data": lambda: 1, "sweep": {"a": [1]}},
            "`sweep` has 'a', and there is no `train`",
        ),
        (
            train,
            {"build": "mlp", "data": "digits", "sweep": {"a": [1]}},
            "`build` is the name 'mlp",
        ),
        (not_by_groups, {"sides": ["plain", "group"]}, "`train` fails with the group norm network"),
        (train, {"optimizer": "adam"}, "`optimizer` is 'adam', and `train` is your own, which"),
        (train, {"batch_size": 3}, "`batch_size` is 3, and `data` is your own, which decides"),
        (train, {"device": "cuda:77"}, "`device` is 'cuda:77', which is not there: pass auto"),
    ],
)
def test_wrong_loops_are_refused_in_a_sentence(loop, options, message, tmp_path):
    assert message in refused(loop, **options, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_loop_needs_learning_rates_and_is_a_function():
    with pytest.raises(ValueError, match="`learning_rates` is missing: a loop of your own has its"):
        compare(net, train=train)
    with pytest.raises(TypeError, match="`train` is a int: pass a function"):
        compare(net, train=3)
    with pytest.raises(TypeError, match="`data` is missing: pass it, or a loop of your own"):
        compare(net)
    with pytest.raises(TypeError, match="`sweep` has 3 for 'width': pass its values in a list"):
        own_loop(train, Settings(), {"width": 3}, given=["learning_rates"])
    with pytest.raises(TypeError, match="and `train` is your own: pass the name of a metric"):
        own_loop(train, Settings(metric=print), {}, given=["learning_rates"])


@pytest.mark.parametrize("reports", [False, True])
def test_a_rehearsal_that_takes_too_long_is_ended(reports, monkeypatch):
    def endless(model, trial):
        while True:
            model(X)
            if reports:
                trial.report(1, accuracy=0.5)

    monkeypatch.setattr(rehearsal, "PATIENCE", 0.2)
    expected = (
        "goes on with the plain network" if reports else "nothing with the plain network for 0.2"
    )
    assert expected in refused(endless)


def spins(_model, _trial):
    while True:
        pass


def waits(_model, _trial):
    threading.Event().wait()


def reports_a_loss_and_waits(model, trial):
    model(X)
    trial.report(0, loss=1.0)
    waits(model, trial)


@pytest.mark.parametrize("loop", [spins, waits, reports_a_loss_and_waits])
def test_a_rehearsal_that_never_calls_the_network_is_ended(loop, monkeypatch):
    monkeypatch.setattr(rehearsal, "PATIENCE", 0.2)
    threads = {*threading.enumerate()}
    expected = "has reported nothing with the plain network for 0.2 seconds: report more often"
    assert expected in refused(loop, metric="accuracy")
    assert {*threading.enumerate()} <= threads


def test_a_rehearsal_in_another_thread_is_ended(monkeypatch):
    monkeypatch.setattr(rehearsal, "PATIENCE", 0.2)
    with ThreadPoolExecutor(1) as other:
        assert "has reported nothing with the plain" in other.submit(refused, spins).result()
