import dataclasses
import random
import sys

import numpy as np
import pytest
import torch

import users
from bnkit.experiments.comparison import plan_comparison
from bnkit.experiments.results import SIDES
from bnkit.experiments.settings import Settings
from bnkit.experiments.trials import one_thread


def planned(build=users.build, data=users.loaders, **settings):
    """Return the trials of a small sweep."""
    options = {"learning_rates": [0.1], "seeds": 1, "steps": 12, "evaluate_every": 4, **settings}
    return plan_comparison(build, data, settings=Settings(**options), out="unused").trials


def timeless(result):
    return dataclasses.replace(result, seconds=0.0)


@pytest.mark.parametrize("data", [users.loaders, *users.SHUFFLING], ids=lambda data: data.__name__)
def test_a_trial_gives_the_same_numbers_whenever_it_is_run(data):
    for trial in planned(users.build_with_dropout, data):
        first = trial.run()
        torch.rand(5), random.random()  # whatever came in between
        assert timeless(trial.run()) == timeless(first)
        assert first.outcome == "finished"
        assert first.curve.steps == (4, 8, 12)


def test_the_result_says_what_was_trained_and_what_it_cost():
    plain, twin = (trial.run() for trial in planned())
    assert (plain.side, twin.side) == SIDES
    # 4·8 + 8 and 8·3 + 3; the twin has no bias before its batch norm, which has 2·8 of its own
    assert (plain.parameters, plain.buffers) == (67, 0)
    assert (twin.parameters, twin.buffers) == (67 - 8 + 16, 2 * 8 + 1)
    assert (plain.steps, plain.learning_rate, plain.activation) == (12, 0.1, "as built")
    assert plain.seconds > 0
    assert plain.metric == plain.curve.metric[-1] == plain.test_metric


def test_the_test_set_is_measured_once_at_the_end():
    trials = planned("mlp", "digits", activations=["relu"], hidden=[8])
    result = trials[0].run()
    assert result.metric == result.test_metric  # digits have no validation set


def test_the_generators_and_threads_of_the_caller_stay_as_they_are():
    (trial, _) = planned()
    threads = torch.get_num_threads()
    before = states()
    trial.run()
    assert states() == before
    assert torch.get_num_threads() == threads


def states():
    of_numpy = np.random.get_state()[1]  # noqa: NPY002  the generator that people's code uses
    return torch.get_rng_state().tolist(), random.getstate(), of_numpy.tolist()


def test_one_thread_is_used_inside_and_given_back_after_an_error():
    threads = torch.get_num_threads()
    with pytest.raises(KeyError), one_thread():
        raise KeyError(torch.get_num_threads() == 1)
    assert torch.get_num_threads() == threads


def test_a_run_that_diverges_is_a_result():
    plain, _ = (trial.run() for trial in planned(learning_rates=[1e10]))
    assert (plain.outcome, plain.steps) == ("diverged", 4)
    assert plain.curve.loss == (None,)
    assert plain.metric is None  # of outputs that are NaN, no class is the one predicted
    assert not plain.succeeds(0.01)


FAILING = [
    (lambda: 1 / 0, "ZeroDivisionError: division by zero"),
    (lambda: sys.exit(3), "SystemExit: 3"),
    (lambda: torch.zeros(2) @ torch.zeros(3), "RuntimeError: inconsistent tensor size"),
]


class FailsLater:
    """Batches of which the third, in the second half of training, raises."""

    def __init__(self, fail):
        self.fail, self.begun = fail, 0

    def __iter__(self):
        yield from users.cut(users.TRAIN)
        self.begun += 1
        if self.begun == 2:
            self.fail()


@pytest.mark.parametrize(("fail", "reason"), FAILING)
def test_an_error_of_peoples_own_code_is_a_failed_trial_with_its_reason(fail, reason):
    trial, _ = planned(data=lambda: (FailsLater(fail), users.cut(users.TEST)))
    longer = dataclasses.replace(
        trial, training=dataclasses.replace(trial.training, steps=40, evaluate_every=40)
    )
    result = longer.run()
    assert result.outcome == "failed"
    assert result.reason.startswith(reason)
    assert (result.metric, result.curve.steps) == (None, ())


def test_ctrl_c_is_no_result():
    trial, _ = planned(data=lambda: (FailsLater(interrupt), users.cut(users.TEST)))
    longer = dataclasses.replace(trial, training=dataclasses.replace(trial.training, steps=40))
    with pytest.raises(KeyboardInterrupt):
        longer.run()


def interrupt():
    raise KeyboardInterrupt


def test_a_network_that_comes_out_otherwise_in_this_process_makes_no_pair():
    # As where its weights depend on the hashes of text, which differ between processes.
    trial, _ = planned()
    result = dataclasses.replace(trial, arrays="of the process that planned").run()
    assert result.outcome == "failed"
    assert result.reason == (
        "ValueError: the network has other initial arrays here than in the process that planned "
        "the comparison: its weights must follow from the seed alone"
    )
