import json
import math
from dataclasses import replace

import torch

from bnkit.lab.settings import Settings
from bnkit.lab.subject import subject_of
from bnkit.lab.training import Training
from bnkit.lab.trials import Trial
from tiny import Raising, build, loaders

STEPS = Training(0.1, steps=4, evaluate_every=2)


def trial(key, *, network=build, side="plain", training=STEPS, seed=0):
    subject = subject_of(network, loaders, Settings())
    return Trial(key, subject, side, "as built", seed, training)


def without_times(result):
    return replace(result, seconds=0.0)


def test_a_trial_gives_the_same_numbers_again_and_leaves_the_generators_alone():
    one = trial("a", side="batch norm")
    state = torch.get_rng_state()
    first, second = one.run(), one.run()
    assert without_times(first) == without_times(second)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_trial_that_raises_is_a_failed_one_with_its_reason():
    result = trial("a", network=Raising).run()
    assert (result.outcome, result.reason) == ("failed", "RuntimeError: out of luck")
    assert result.accuracy is None


def test_a_trial_that_diverges_is_a_result_and_its_json_is_strict():
    result = trial("a", training=Training(1e30, steps=40, evaluate_every=2)).run()
    assert result.outcome == "diverged"
    assert result.curve.loss[-1] is None
    assert not result.succeeds(0.0)
    assert math.isfinite(result.accuracy)
    json.dumps(result.to_json(), allow_nan=False)


def test_a_result_counts_parameters_and_buffers():
    plain, batch_norm = (trial("a", side=side).run() for side in ("plain", "batch norm"))
    assert (plain.parameters, plain.buffers) == (6 * 8 + 8 + 8 * 3 + 3, 0)
    assert (batch_norm.parameters, batch_norm.buffers) == (6 * 8 + 2 * 8 + 8 * 3 + 3, 2 * 8 + 1)
