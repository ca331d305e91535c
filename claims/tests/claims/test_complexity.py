"""The verdict on complexity follows from how the gain grows with depth and width."""

import pytest

from bnkit.experiments.results import SIDES
from bnkit_claims.claims.complexity import CLAIM, Complexity, judge
from bnkit_claims.core.evidence import Beside, Part
from invented import invented_run

SETTINGS = Complexity(depths=(1, 2, 4), width=10, widths=(5, 10, 20), depth=2)
GROWING = {(1, 10): 1, (2, 5): 1, (2, 10): 2, (2, 20): 4, (4, 10): 4}
CONSTANT = dict.fromkeys(GROWING, 3)


def trained(gains, seeds=3):
    """Return runs in which batch norm takes 10 steps and plain `gain` times as many."""
    reached = {side: (lambda gain, s=side: 10 * gain if s == "plain" else 10) for side in SIDES}
    return [
        {"depth": depth, "width": width, "side": side, "seed": seed, "runs": {"0.1": run}}
        for (depth, width), gain in gains.items()
        for side in SIDES
        for seed in range(seeds)
        for run in [invented_run(reached=gain and reached[side](gain), length=200)]
    ]


def test_the_toy_run_measures_every_network():
    evidence = CLAIM.run(CLAIM.settings("toy"))
    assert {(row["depth"], row["width"]) for row in evidence.details} == {(1, 16), (2, 8), (2, 16)}
    assert [figure.x.label for figure in evidence.figures] == [
        "hidden layers",
        "units in each hidden layer",
    ]
    assert all(row["gain"] > 0 for row in evidence.details)


def test_a_gain_that_grows_from_nothing_holds():
    evidence = judge(SETTINGS, trained(GROWING))
    assert evidence.verdict == "holds"
    doubled = "2.00 (2.00 to 2.00) times the gain with each doubling"
    assert evidence.parts == (
        Part("a gain that grows with depth", doubled, True),
        Part("a gain that grows with width", doubled, True),
        Part(
            "no gain in the simplest network, one hidden layer",
            "1.00 (1.00 to 1.00) times as many steps without batch norm",
            True,
        ),
    )
    four = "4.00 (4.00 to 4.00) times as many steps without batch norm"
    assert evidence.beside == (Beside("the gain with 4 hidden layers", four),)
    assert evidence.headline == (
        "To 90% the plain network takes 1 times the steps with one hidden layer, "
        "and 4 times with 4 hidden layers."
    )
    assert evidence.figures[0].lines[0].y == (1, 2, 4)


def test_a_gain_that_is_there_at_every_size_does_not_hold():
    evidence = judge(SETTINGS, trained(CONSTANT))
    assert evidence.verdict == "does not hold"
    assert [part.figures for part in evidence.parts[:2]] == [
        "1.00 (1.00 to 1.00) times the gain with each doubling"
    ] * 2
    assert evidence.headline == (
        "To 90% the plain network takes 3 times the steps with one hidden layer, "
        "and 3 times with 4 hidden layers."
    )


def test_a_gain_that_grows_with_depth_only_holds_in_part():
    deeper = {shape: shape[0] for shape in GROWING}
    evidence = judge(SETTINGS, trained(deeper))
    assert evidence.verdict == "holds in part"
    assert [part.shown for part in evidence.parts] == [True, False, True]
    assert evidence.parts[1].what == "a gain that grows with width"


def test_a_simplest_network_that_gains_is_said_plainly():
    evidence = judge(SETTINGS, trained({shape: 2 * gain for shape, gain in GROWING.items()}))
    assert [part.shown for part in evidence.parts] == [True, True, False]
    assert evidence.parts[2].figures == "2.00 (2.00 to 2.00) times as many steps without batch norm"


@pytest.mark.parametrize(("gains", "seeds"), [(GROWING, 2), (dict.fromkeys(GROWING), 3)])
def test_too_few_seeds_and_runs_that_never_arrive_show_nothing(gains, seeds):
    assert judge(SETTINGS, trained(gains, seeds)).verdict == "not shown"


def test_gains_that_are_unknown_are_told():
    evidence = judge(SETTINGS, trained(dict.fromkeys(GROWING)))
    assert [part.figures for part in evidence.parts] == [
        "unknown: no seed has two gains",
        "unknown: no seed has two gains",
        "neither side gets there from 3 of 3 seeds",
    ]
    assert evidence.headline == (
        "To 90% the plain network takes an unknown number of times the steps with one hidden "
        "layer, and an unknown number of times with 4 hidden layers."
    )


def test_a_plain_network_that_never_arrives_makes_the_gain_a_bound():
    results = trained(GROWING)
    for result in results:
        if result["side"] == "plain" and result["depth"] == 4:
            result["runs"]["0.1"] = invented_run(length=200)
    evidence = judge(SETTINGS, results)
    assert evidence.beside[0].what == "the gain with 4 hidden layers"
    assert evidence.beside[0].figures.startswith("at least 20.00 (20.00 to 20.00) times as many")
    assert evidence.headline.endswith("and at least 20 times with 4 hidden layers.")
