import json
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from scipy import stats

from bnkit.experiments.metrics import Metric
from bnkit.experiments.results import Curve, TrialResult
from bnkit.experiments.statistics import SuccessRate
from bnkit.experiments.summary import Comparison, Recipe, own_best, summarise

TARGET = 0.9


def trial(side, seed, accuracy, *, reached=None, rate=0.1, activation="relu", **others):
    """A finished trial that is first at the target at step `reached`, a multiple of 10."""
    steps = tuple(range(10, 110, 10))
    measured = [0.5 if reached is None or step < reached else TARGET for step in steps[:-1]]
    curve = Curve(steps, (1.0,) * 10, (*measured, accuracy))
    finished = TrialResult(
        key=f"{side} {activation} {rate} {seed}",
        side=side,
        learning_rate=rate,
        activation=activation,
        seed=seed,
        outcome="finished",
        curve=curve,
        metric=accuracy,
        test_metric=accuracy - 0.01,
        parameters=100,
        buffers=0 if side == "plain" else 5,
        steps=100,
        seconds=0.1,
    )
    return replace(finished, **others)


def plain(seed, accuracy=0.95, **others):
    return trial("plain", seed, accuracy, **others)


def twin(seed, accuracy=0.95, **others):
    return trial("batch norm", seed, accuracy, **others)


def not_run(result):
    return TrialResult(
        result.key, result.side, result.learning_rate, result.activation, result.seed, "not run"
    )


def failed(result):
    return replace(not_run(result), outcome="failed", reason="RuntimeError: no memory")


def comparison(*trials):
    return Comparison({"steps": 100}, {"torch": "2"}, TARGET, "bnkit compare mlp digits", trials)


# One side of one setting


def test_a_side_is_summarised_by_medians_and_ranges():
    runs = [
        plain(0, 0.91, reached=20, seconds=0.1),
        plain(1, 0.97, reached=60, seconds=0.4),
        plain(2, 0.92, reached=30, seconds=0.2),
    ]
    found = summarise(runs, TARGET)
    assert (found.metric, found.lowest, found.highest) == (0.92, 0.91, 0.97)
    assert found.test_metric == pytest.approx(0.91)
    assert (found.steps_to_target, found.milliseconds_per_step) == (30, 2.0)
    assert found.success == SuccessRate(3, 3)
    assert (found.parameters, found.buffers, found.outcomes) == (100, 0, {"finished": 3})


@pytest.mark.parametrize(
    ("reached", "middle"),
    [
        ((20, 40, None), 40),
        ((20, None, None), None),
        ((20, 40), 30),
        ((20, None), None),  # half of the runs: between 20 and infinity lies infinity
        ((20, 40, 60, None), 50),
    ],
)
def test_a_run_that_never_reaches_the_target_counts_as_infinitely_long(reached, middle):
    runs = [plain(i, 0.95 if r else 0.6, reached=r) for i, r in enumerate(reached)]
    assert summarise(runs, TARGET).steps_to_target == middle


def test_diverged_runs_count_in_the_accuracy_and_not_as_a_success():
    runs = [plain(0, 0.95), plain(1, 0.1, outcome="diverged"), plain(2, 0.96, outcome="diverged")]
    found = summarise(runs, TARGET)
    assert (found.metric, found.lowest) == (0.95, 0.1)
    assert found.success == SuccessRate(1, 3)
    assert found.outcomes == {"finished": 1, "diverged": 2}


def test_a_run_that_reached_the_target_and_then_diverged_never_did():
    diverged = plain(0, 0.95, reached=20, outcome="diverged")
    assert summarise([diverged], TARGET).steps_to_target is None
    ratio = comparison(diverged, twin(0, reached=20)).cell(0.1, "relu").ratios["batch norm"]
    assert (ratio.both, ratio.only_batch_norm) == (0, 1)


def test_runs_that_were_not_run_are_not_infinitely_long():
    found = summarise([plain(0, reached=20), not_run(plain(1)), not_run(plain(2))], TARGET)
    assert found.steps_to_target == 20


def test_failed_runs_count_in_the_rate_and_runs_not_run_do_not():
    found = summarise([plain(0), failed(plain(1)), not_run(plain(2))], TARGET)
    assert found.success == SuccessRate(1, 2)
    assert found.outcomes == {"finished": 1, "failed": 1, "not run": 1}
    assert found.metric == 0.95


@pytest.mark.parametrize("runs", [[], [not_run(plain(0))]], ids=["no trial", "none run"])
def test_without_runs_there_is_no_median(runs):
    found = summarise(runs, TARGET)
    assert found.success == SuccessRate(0, 0)
    assert (found.metric, found.lowest, found.highest, found.test_metric) == (None,) * 4
    assert (found.steps_to_target, found.milliseconds_per_step) == (None, None)


# The sweep


def test_cells_come_by_activation_as_asked_for_and_then_by_ascending_rate():
    found = comparison(
        *(
            make(seed, rate=rate, activation=activation)
            for activation in ("sigmoid", "relu")
            for rate in (1.0, 0.1)
            for seed in (1, 0)
            for make in (plain, twin)
        )
    )
    assert found.learning_rates == (0.1, 1.0)
    assert found.activations == ("sigmoid", "relu")
    assert found.seeds == (0, 1)
    assert [(c.activation, c.learning_rate) for c in found.cells] == [
        ("sigmoid", 0.1),
        ("sigmoid", 1.0),
        ("relu", 0.1),
        ("relu", 1.0),
    ]


def test_a_cell_holds_both_sides_and_the_ratio_of_steps_seed_by_seed():
    found = comparison(
        plain(0, reached=40),
        plain(1, reached=60),
        plain(2, reached=90),
        twin(2, reached=10),  # in another order: the seeds pair them
        twin(1, reached=20),
        twin(0, reached=20),
        plain(0, reached=90, rate=1.0),  # of another cell
    )
    cell = found.cell(0.1, "relu")
    assert cell.ratios["batch norm"].ratio == pytest.approx(stats.gmean([2, 3, 9]))
    assert cell.side("plain") == summarise(found.at(0.1, "relu", "plain"), TARGET)
    assert cell.side("batch norm").steps_to_target == 20


def test_pairs_in_which_one_side_never_reaches_the_target_are_counted():
    ratio = (
        comparison(plain(0, 0.5), twin(0, reached=20), plain(1, reached=30), twin(1, 0.5))
        .cell(0.1, "relu")
        .ratios["batch norm"]
    )
    assert (ratio.both, ratio.only_batch_norm, ratio.only_plain) == (0, 1, 1)


def test_the_largest_learning_rate_is_the_largest_at_which_every_seed_trains():
    found = comparison(
        *(plain(seed, rate=0.1) for seed in (0, 1)),
        *(plain(0, rate=1.0), plain(1, 0.5, rate=1.0)),
        *(twin(seed, rate=rate) for rate in (0.1, 1.0) for seed in (0, 1)),
        *(twin(0, 0.5, rate=3.0), twin(1, 0.5, rate=3.0)),
        *(not_run(twin(seed, rate=9.0)) for seed in (0, 1)),  # what did not run shows nothing
        plain(0, 0.5, activation="tanh"),
    )
    assert found.largest_learning_rate("relu", "plain") == 0.1
    assert found.largest_learning_rate("relu", "batch norm") == 1.0
    assert found.largest_learning_rate("tanh", "plain") is None


def test_the_best_setting_has_the_highest_median_accuracy():
    found = comparison(
        *(plain(0, 0.93, rate=0.1), plain(0, 0.96, rate=1.0), plain(0, 0.94, rate=3.0)),
        plain(0, 0.99, activation="tanh"),
    )
    assert found.best("plain").activation == "tanh"
    assert found.best("plain", "relu").learning_rate == 1.0


def test_equal_accuracies_go_to_the_setting_that_is_first_at_the_target():
    found = comparison(
        plain(0, rate=0.01, reached=None),
        plain(0, rate=0.1, reached=60),
        plain(0, rate=1.0, reached=20),
        plain(0, rate=3.0, reached=30),
    )
    assert found.best("plain").learning_rate == 1.0


def test_without_an_accuracy_there_is_no_best_setting():
    found = comparison(not_run(plain(0)), failed(twin(0)))
    assert found.best("plain") is None
    assert found.best("batch norm") is None
    assert found.best_pairs(lambda t: t.seed) == []


def test_best_pairs_compare_each_side_at_its_own_best_setting_by_seed():
    found = comparison(
        *(plain(seed, 0.95, rate=0.1) for seed in (0, 1)),
        *(plain(seed, 0.91, rate=1.0) for seed in (0, 1)),
        *(twin(seed, 0.91, rate=0.1) for seed in (0, 1)),
        *(twin(seed, 0.97, rate=1.0) for seed in (1, 0)),
    )
    pairs = found.best_pairs(lambda t: (t.side, t.learning_rate, t.seed))
    assert pairs == [
        (("plain", 0.1, 0), ("batch norm", 1.0, 0)),
        (("plain", 0.1, 1), ("batch norm", 1.0, 1)),
    ]


def test_unfinished_are_the_trials_that_failed_or_were_not_run():
    lost = (failed(plain(1)), not_run(twin(1)))
    found = comparison(plain(0), twin(0, 0.1, outcome="diverged"), *lost)
    assert found.unfinished == lost


def test_the_slowdown_is_the_median_of_the_paired_ratios():
    found = comparison(
        *(plain(0, seconds=0.1), twin(0, seconds=0.2)),
        *(plain(1, seconds=0.2), twin(1, seconds=0.2)),
        *(plain(2, seconds=0.1), twin(2, seconds=0.9)),
        *(plain(3), failed(twin(3))),  # no time on one side
        *(failed(plain(4)), twin(4)),
        *(plain(5, seconds=0.0), twin(5)),  # a clock too coarse to see the steps
    )
    assert found.slowdown == pytest.approx(2.0)


def test_without_a_pair_of_times_there_is_no_slowdown():
    assert comparison(plain(0), not_run(twin(0))).slowdown is None


# The verdict


def test_the_verdict_pairs_every_setting_and_leaves_out_what_was_not_run():
    found = comparison(
        *(plain(0, 0.5, rate=0.1), twin(0, rate=0.1)),
        *(plain(0, rate=1.0), twin(0, rate=1.0)),
        *(not_run(plain(1, rate=0.1)), twin(1, rate=0.1)),
        *(plain(1, rate=1.0), not_run(twin(1, rate=1.0))),
    ).verdict
    assert (found.seeds, found.pairs, found.trained) == (1, 2, (1, 2))


def test_runs_of_different_settings_are_no_pair_in_an_interrupted_sweep():
    # Of the plain network one trial was run; of its twin two, one at another rate.
    found = comparison(
        *(plain(0, 0.5, rate=0.1), not_run(plain(0, rate=1.0))),
        *(twin(0, 0.5, rate=0.1), twin(0, rate=1.0)),
    ).verdict
    assert (found.pairs, found.trained) == (1, (0, 0))


def test_a_twin_that_trains_where_the_plain_network_diverges_helps():
    diverged = [plain(s, 0.1, rate=1.0, outcome="diverged") for s in range(6)]
    found = comparison(*diverged, *(twin(s, rate=1.0) for s in range(6)))
    assert found.verdict.answer == "helps"


def test_a_comparison_that_was_stopped_before_its_first_trial_has_nothing_to_compare():
    found = comparison(not_run(plain(0)), not_run(twin(0)))
    assert found.verdict.answer == "nothing to compare"
    assert "none → none" in str(found)


def test_each_seed_gives_one_value_however_many_settings_share_it():
    rates = (0.1, 0.3, 1.0)
    found = comparison(
        *(plain(seed, rate=rate) for seed in range(2) for rate in rates),
        *(twin(seed, rate=rate) for seed in range(2) for rate in rates),
    ).verdict
    assert (found.pairs, found.seeds) == (6, 2)
    assert found.answer == "not shown"  # six pairs, yet two seeds


def test_a_run_of_an_own_target_trains_if_it_ends_finite():
    trials = [plain(0, 0.5), plain(1, 0.6, outcome="diverged"), twin(0, 0.7), twin(1, 0.7)]
    found = replace(comparison(*trials), own_target=True, target=0.5)
    assert [found.trains(trial) for trial in trials] == [True, False, True, True]
    assert found.verdict.trained == (1, 2)
    assert "50.0% held-out accuracy (the best of plain)" in str(found)


def test_what_counts_as_no_difference_of_another_metric_is_a_twentieth_of_what_was_gained():
    error = Metric("mse", higher_is_better=False)
    curve = Curve((10, 20, 30), (1.0,) * 3, (2.5, 1.0, 0.5))
    trials = [replace(make(s), curve=curve, metric=0.5) for s in range(3) for make in (plain, twin)]
    found = replace(comparison(*trials), metric=error, target=0.3)
    assert found.quality_margin == pytest.approx(0.1)
    assert replace(found, margin=0.2).quality_margin == 0.2
    assert comparison(plain(0), twin(0)).quality_margin == 0.01
    assert "0.1 of test mse" in str(found.verdict)


def test_the_own_best_is_a_median_of_most_runs_at_any_setting_and_step():
    def run(seed, values, **others):
        curve = Curve(tuple(range(1, len(values) + 1)), (1.0,) * len(values), values)
        return replace(plain(seed, **others), curve=curve)

    trials = [
        *(run(0, (0.2, 0.6, 0.5)), run(1, (0.3, 0.8, 0.4)), run(2, (0.1, 0.7, None))),
        *(run(0, (0.9,), rate=1.0), run(1, (0.1,), rate=1.0), run(2, (0.1,), rate=1.0)),
        run(0, (0.3, 0.3, 0.3, 0.99), activation="tanh"),
        *(run(s, (0.3,), activation="tanh") for s in (1, 2)),  # 0.99 is of one run in three
        twin(0, 0.95),
    ]
    assert own_best(trials) == 0.7
    assert own_best(trials, Metric("mse", higher_is_better=False)) == 0.1
    assert math.isnan(own_best([not_run(plain(0))]))


def test_three_sides_are_each_compared_with_the_first():
    group = [replace(twin(s, 0.97, reached=20), side="group norm") for s in range(4)]
    trials = [*(plain(s, reached=80) for s in range(4)), *(twin(s, reached=80) for s in range(4))]
    found = comparison(*trials, *group)
    assert found.sides == ("plain", "batch norm", "group norm")
    assert [*found.verdicts] == ["batch norm", "group norm"]
    assert found.verdicts["group norm"].sentences[0] == "Group norm helps this network."
    assert found.verdict.answer != "helps"
    assert found.cells[0].ratios["group norm"].ratio == pytest.approx(4)
    assert Comparison.from_json(json.loads(json.dumps(found.to_json()))) == found
    lines = [line for line in str(found).splitlines() if " 0.1 " in line]
    assert [line.split()[2] for line in lines] == ["plain", "batch", "group"]


# Views


@pytest.fixture
def full():
    return comparison(
        *(plain(0, 0.93, reached=40), twin(0, 0.96, reached=20)),
        *(plain(1, 0.94, reached=60), twin(1, 0.97, reached=20)),
        *(plain(0, 0.5, rate=1.0), failed(twin(0, rate=1.0))),
        *(plain(1, math.nextafter(0.9, 0), rate=1.0), not_run(twin(1, rate=1.0))),
    )


def test_a_comparison_comes_back_equal_from_json_text(full):
    text = json.dumps(full.to_json(), allow_nan=False)
    back = Comparison.from_json(json.loads(text))
    assert back == full
    assert back.to_json() == full.to_json()


@pytest.mark.parametrize(("fields", "format"), [({}, 1), ({"format": 1}, 1), ({"format": 3}, 3)])
def test_results_of_another_format_are_refused(full, fields, format):
    document = full.to_json()
    assert document.pop("format") == 2
    message = f"^these results have format {format}, and this bnkit reads 2: use the version that"
    with pytest.raises(ValueError, match=message):
        Comparison.from_json({**document, **fields})


def test_the_judged_metric_need_not_be_accuracy():
    error = Metric("mse", higher_is_better=False)
    trials = [plain(seed, 0.5) for seed in range(3)] + [twin(seed, 0.25) for seed in range(3)]
    found = replace(comparison(*trials), target=0.3, metric=error)
    assert found.cells[0].side("batch norm").success.successes == 3
    assert found.cells[0].side("plain").success.successes == 0
    assert "mse" in str(found)
    assert "0.5 → 0.25" in str(found)
    assert "With batch norm the network's test mse differs by -0.25 from that without it" in str(
        found
    )
    assert Comparison.from_json(found.to_json()) == found


def test_a_recipe_comes_back_equal_from_json_text(full):
    plan = (("0", "Linear", "drop bias", "why"), ("2", "Linear", "left alone", "why not"))
    found = replace(full, recipe=Recipe("Net()", "relu", plan, "import bnkit"))
    back = Comparison.from_json(json.loads(json.dumps(found.to_json())))
    assert back == found


def test_a_frame_has_a_row_for_each_trial(full, monkeypatch):
    columns = []
    pandas = SimpleNamespace(DataFrame=lambda rows: columns.extend(rows) or "a frame")
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    assert full.to_frame() == "a frame"
    assert [row["steps_to_target"] for row in columns[:4]] == [40, 20, 60, 20]
    assert len(columns) == 8
    assert "curve" not in columns[0]
    assert {"side", "seed", "metric", "milliseconds_per_step"} <= columns[0].keys()


def test_without_pandas_a_frame_is_refused_in_one_sentence(full, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    message = r"`to_frame`, which returns a pandas DataFrame, needs pandas, which is not installed"
    with pytest.raises(ModuleNotFoundError, match=message):
        full.to_frame()


def test_json_holds_the_summaries_beside_the_trials(full):
    document = full.to_json()
    assert document["verdicts"]["batch norm"]["answer"] == full.verdict.answer
    assert [cell["learning_rate"] for cell in document["cells"]] == [0.1, 1.0]
    assert document["cells"][0]["sides"]["batch norm"]["success"] == {"successes": 2, "runs": 2}
    assert len(document["trials"]) == 8


def test_the_text_is_a_row_for_each_setting_what_is_absent_and_the_verdict(full):
    text = str(full)
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert rows[0] == "plain → batch norm, medians over 2 seeds"
    assert "relu 0.1 93.5% → 96.5% 2/2 → 2/2 50 → 20 2.45" in rows
    assert "relu 1 70.0% → none 0/2 → 0/1 never → never" in rows
    assert text.endswith(
        f"\n\n1 run failed: RuntimeError: no memory\n1 run not run\n\n{full.verdict}"
    )


def test_of_what_did_not_run_the_text_says_no_more(full):
    lost = [not_run(each) if each.learning_rate == 1.0 else each for each in full.trials]
    rows = [" ".join(line.split()) for line in str(replace(full, trials=tuple(lost))).splitlines()]
    assert "relu 1 none → none not run → not run none → none" in rows


def test_equal_absences_are_counted_and_none_is_not_mentioned(full):
    lost = comparison(failed(plain(0)), failed(twin(0)))
    assert "\n\n2 runs failed: RuntimeError: no memory\n\n" in str(lost)
    assert "not run" not in str(replace(full, trials=full.trials[:4]))


class Counted(tuple):
    """Trials that count how often they are gone through."""

    __slots__ = ()
    walks = 0

    def __iter__(self):
        Counted.walks += 1
        return super().__iter__()


def test_a_table_goes_through_the_trials_as_often_for_many_settings_as_for_few():
    walks = []
    for settings in (3, 30):
        trials = [
            made(seed, reached=30, rate=rate)
            for rate in range(1, settings + 1)
            for seed in range(2)
            for made in (plain, twin)
        ]
        found = comparison()
        object.__setattr__(found, "trials", Counted(trials))
        Counted.walks = 0
        str(found)
        walks.append(Counted.walks)
    assert walks[0] == walks[1] > 0


HERE, THERE = (
    {"host": host, "processor": processor, "threads": "1", "torch": "2.13.0"}
    for host, processor in (("one", "CPU A"), ("other", "CPU B"))
)


def on(machine, *makers):
    def run(make, seed):
        slow = make is plain
        reached, seconds = 20 + 10 * slow * (1 + seed % 2), 0.1 + 0.1 * slow
        return make(seed, reached=reached, machine=machine, seconds=seconds)

    return [run(make, seed) for seed in range(6) for make in makers]


def test_seconds_of_a_comparison_on_one_machine_are_told_and_machines_are_not():
    found = comparison(*on(HERE, plain, twin))
    assert "In seconds it is about" in str(found)
    assert found.unlike_machines == ""


def test_times_of_unlike_machines_are_never_compared():
    found = comparison(*on(HERE, plain), *on(THERE, twin))
    assert found.slowdown is None
    assert "In seconds" not in str(found)
    assert found.unlike_machines in str(found)
    assert found.unlike_machines == (
        "The runs are of 2 hosts (CPU A, 1 threads, torch 2.13.0; CPU B, 1 threads, torch 2.13.0): "
        "times are compared only within pairs of one machine."
    )


def test_times_within_pairs_of_one_machine_are_compared_whichever_it_is():
    both = [replace(t, machine=THERE if t.seed % 2 else HERE) for t in on(HERE, plain, twin)]
    found = comparison(*both)
    assert found.slowdown == 0.5
    assert "In seconds it is about" in str(found)


def test_runs_of_a_pair_that_end_at_other_steps_are_told():
    even = comparison(plain(0), twin(0), plain(1), twin(1))
    assert "other steps" not in str(even)
    longer = comparison(
        plain(0), twin(0), plain(1), twin(1, steps=1300), plain(2), not_run(twin(2))
    )
    told = "1 of 2 pairs of runs end at other steps, plain at 100 and batch norm at 1,300"
    assert told in str(longer)


def test_a_run_that_diverges_early_is_no_other_number_of_steps():
    found = comparison(plain(0, outcome="diverged", steps=30), twin(0))
    assert "other steps" not in str(found)
