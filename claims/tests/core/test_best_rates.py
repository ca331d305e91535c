"""A side's best rate is chosen without the run that is judged, and a run that fails is a bound."""

import math

import pytest

from bnkit_claims.core.best_rates import (
    edge_notes,
    final_accuracy,
    own_best,
    runs_over,
    slowness,
    step_ratio,
    steps_to,
)
from bnkit_claims.core.claim import ClaimSettings
from bnkit_claims.core.trainings import trial
from invented import invented_run


def test_a_run_over_rates_is_the_trial_at_each():
    options = {"hidden": (8,), "steps": 20, "evaluate_every": 10}
    runs = runs_over(ClaimSettings(), "plain", seed=1, rates=[0.1, 1.0], **options)
    same = trial(ClaimSettings(), "plain", seed=1, learning_rate=1.0, **options)
    assert runs["1.0"]["accuracies"] == list(same.curve.metric)
    assert runs["1.0"]["test"] == same.test_metric
    assert set(runs) == {"0.1", "1.0"}


def test_a_run_that_diverged_reached_nothing():
    # It may have been at the target before it exploded.
    run = invented_run(reached=10, diverged=True)
    assert (steps_to(run, 0.9), final_accuracy(run)) == (None, 0)


def test_a_run_that_never_arrives_costs_more_than_any_that_does_and_less_the_nearer_it_came():
    cost = slowness(0.9)
    arrived, near, far, exploded = (
        invented_run(reached=100),
        invented_run(reached=50, accuracy=0.8),
        invented_run(),
        invented_run(diverged=True),
    )
    assert cost(arrived) == 100 < cost(near) < cost(far) < cost(exploded)


def test_no_run_is_chosen_for_its_own_luck():
    # Rate 1.0 is quickest by far in seed 0 only; the other seeds speak for 0.1.
    lucky = {"0.1": invented_run(reached=50), "1.0": invented_run(reached=10)}
    usual = {"0.1": invented_run(reached=50), "1.0": invented_run()}
    results = [{"seed": 0, "runs": lucky}, {"seed": 1, "runs": usual}, {"seed": 2, "runs": usual}]
    best = own_best(results, slowness(0.9))
    assert {seed: rate for seed, (rate, _) in best.items()} == {0: 0.1, 1: 0.1, 2: 0.1}
    assert best[0][1] == lucky["0.1"]


def test_a_single_seed_has_only_itself_to_choose_by():
    runs = {"0.1": invented_run(reached=50), "1.0": invented_run(reached=10)}
    assert own_best([{"seed": 0, "runs": runs}], slowness(0.9))[0][0] == 1.0


def pairs(*reached):
    return [(invented_run(reached=p), invented_run(reached=b)) for p, b in reached]


def test_the_ratio_of_steps_is_the_geometric_mean_over_pairs():
    found = step_ratio(pairs((40, 10), (90, 10), (40, 10)), 0.9)
    assert found.ratio.ratio == pytest.approx((4 * 9 * 4) ** (1 / 3))
    assert not found.at_least
    assert not found.at_most


def test_prices_weigh_the_steps():
    found = step_ratio(pairs((40, 10), (40, 10)), 0.9, [(1.0, 2.0), (3.0, 6.0)])
    assert found.ratio.ratio == pytest.approx(2)


@pytest.mark.parametrize(
    ("reached", "text"),
    [((None, 10), "at least 10.00"), ((20, None), "at most 0.20"), ((20, 10), "2.00")],
)
def test_a_run_that_never_arrives_makes_its_ratio_a_bound(reached, text):
    assert str(step_ratio(pairs(reached), 0.9)) == text


def test_pairs_in_which_neither_arrives_say_nothing():
    found = step_ratio(pairs((None, None), (40, 20)), 0.9)
    assert found.ratio.both == 1
    assert found.ratio.neither == 1
    assert math.isclose(found.ratio.ratio, 2)


@pytest.mark.parametrize(
    ("reached", "bar", "shown"),
    [
        ((None, 20), 1, True),
        ((None, 20), 10, None),  # 5 times at least, so perhaps 10 times
        ((20, None), 0.1, None),  # 0.2 at most, so perhaps less than 0.1
        ((20, None), 1, False),
        ((40, 20), 10, False),
    ],
)
def test_a_bound_shows_and_refutes_only_what_lies_on_its_far_side(reached, bar, shown):
    assert step_ratio(pairs(*[reached] * 3), 0.9).beyond(bar, negligible=bar) is shown


def best(*rates):
    return {seed: (rate, invented_run()) for seed, rate in enumerate(rates)}


def test_a_best_rate_inside_the_sweep_needs_no_note():
    assert edge_notes({"plain": best(0.3, 0.3)}, (0.1, 0.3, 1.0)) == ()


def test_the_only_rate_is_told_once():
    assert edge_notes({"plain": best(0.3, 0.3)}, (0.3,)) == (
        "A wider sweep might find a better learning rate than the only, 0.3, for plain.",
    )


def test_best_rates_at_both_edges_are_told_in_one_sentence():
    found = {"plain": best(0.1, 0.3), "batch norm": best(1.0, 1.0)}
    assert edge_notes(found, (0.1, 0.3, 1.0)) == (
        (
            "A wider sweep might find a better learning rate than the smallest, 0.1, for plain and "
            "the largest, 1, for batch norm."
        ),
    )
