"""Key figures give both sides, what they mean together, and a dash where there is nothing."""

from bnkit.report.key_figures import key_figures
from report.fabricate import comparison, never_run

SMALL = comparison([0.1, 3.0], ["relu"], 3)


def figure(name, found=SMALL):
    (match,) = [each for each in key_figures(found) if each.name == name]
    return match


def test_key_figures_give_both_sides():
    assert (figure("Runs that train").plain, figure("Runs that train").batch_norm) == ("3/6", "6/6")
    rates = figure("Largest learning rate")
    assert (rates.plain, rates.batch_norm) == ("0.1", "3")


def test_the_largest_learning_rate_is_a_range_where_activations_differ():
    assert figure("Largest learning rate", comparison()).plain == "0.1–3"
    assert figure("Largest learning rate", comparison(change=never_run)).plain == "none"


def test_the_price_is_stated():
    assert "times as long" in figure("Time per step (ms)").note


def test_key_figures_of_nothing_are_dashes():
    empty = comparison(change=never_run)
    assert figure("Test accuracy", empty).plain == "–"
    assert figure("Steps to the target", empty).batch_norm == "–"
    assert figure("Time per step (ms)", empty).plain == "–"
