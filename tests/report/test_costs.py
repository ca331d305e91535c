"""What batch norm costs is stated beside what the plain network costs."""

from dataclasses import replace

from bnkit.report.costs import costs
from report.fabricate import comparison, never_run


def test_costs_state_what_batch_norm_adds():
    plain, batch_norm = costs(comparison([0.1, 3.0], ["relu"], 3))
    assert (plain.parameters, plain.buffers) == ("27,710", "0")
    assert (batch_norm.parameters, batch_norm.buffers) == ("28,310", "603")
    assert float(plain.time) < float(batch_norm.time)


def test_parameters_that_differ_between_activations_are_a_range():
    def larger_with_prelu(trial):
        return replace(trial, parameters=trial.parameters + (trial.activation == "prelu"))

    plain, _ = costs(comparison([0.1], ["relu", "prelu"], 1, change=larger_with_prelu))
    assert plain.parameters == "27,710 to 27,711"


def test_what_was_never_measured_is_a_dash():
    plain, _ = costs(comparison(change=never_run))
    assert plain.time == "–"
