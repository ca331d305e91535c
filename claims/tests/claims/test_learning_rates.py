import pytest
import torch
import torch.nn.functional as F

from bnkit.experiments.loaders import first_of
from bnkit.experiments.results import SIDES
from bnkit_claims.claims.learning_rates import CLAIM, LearningRates, judge, line_search, run
from bnkit_claims.core.evidence import Part
from bnkit_claims.core.trainings import experiment_for

SETTINGS = LearningRates(learning_rates=(0.1, 1.0, 10.0), step_sizes=(1.0, 10.0, 100.0))


def rates(side, seed, *accuracies):
    found = dict(zip(map(str, SETTINGS.learning_rates), accuracies, strict=True))
    return {"side": side, "seed": seed, "accuracies": found}


def searched(side, seed, *ratios):
    return {"side": side, "seed": seed, "ratios": list(ratios)}


LOW, HIGH = (0.95, 0.1, None), (0.95, 0.95, 0.95)
NONE = (0.1, 0.1, None)
SHORT, LONG = (1.0, 2e3, 1.0), (1.0, 1.0, 2.0)
EXPLODING = (2e3, 2e3, 2e3)
RATE = "the largest learning rate that trains"
STEP = "the longest step before the loss explodes"


def evidence(plain_rates, bn_rates, plain_search, bn_search, seeds=4):
    trained = [rates("plain", s, *plain_rates) for s in range(seeds)]
    trained += [rates("batch norm", s, *bn_rates) for s in range(seeds)]
    found = [searched("plain", s, *plain_search) for s in range(seeds)]
    found += [searched("batch norm", s, *bn_search) for s in range(seeds)]
    return judge(SETTINGS, trained, found)


def test_higher_rates_and_longer_steps_hold():
    found = evidence(LOW, HIGH, SHORT, LONG)
    assert found.verdict == "holds"
    assert found.parts == (
        Part(RATE, "100.00 (100.00 to 100.00) times as large with batch norm", True),
        Part(STEP, "100.00 (100.00 to 100.00) times as long with batch norm", True),
    )
    assert found.headline == (
        "With batch norm the largest learning rate that trains is 100 times as large, "
        "and the longest first step before the loss explodes is 100 times as long."
    )


def test_equal_rates_and_steps_do_not_hold():
    found = evidence(LOW, LOW, SHORT, SHORT)
    assert found.verdict == "does not hold"
    assert found.headline == (
        "With batch norm the largest learning rate that trains is 1 times as large, "
        "and the longest first step before the loss explodes is 1 times as long."
    )


def test_only_one_of_them_holds_in_part():
    found = evidence(LOW, HIGH, LONG, SHORT)
    assert found.verdict == "holds in part"
    assert [(part.what, part.shown) for part in found.parts] == [(RATE, True), (STEP, False)]
    assert found.parts[1].figures == "0.01 (0.01 to 0.01) times as long with batch norm"
    assert found.headline.endswith("the loss explodes is 0.01 times as long.")


def test_two_seeds_show_nothing():
    assert evidence(LOW, HIGH, SHORT, LONG, seeds=2).verdict == "not shown"


def test_a_plain_network_that_trains_at_no_rate_is_counted():
    found = evidence(NONE, HIGH, SHORT, LONG)
    assert found.verdict == "holds"
    assert found.details[0]["largest rate"] is None
    assert found.parts[0] == Part(RATE, "only with batch norm from 4 of 4 seeds", True)
    assert "the largest learning rate that trains has no plain counterpart," in found.headline


def test_a_rate_that_only_the_plain_network_trains_at_does_not_speak_for_batch_norm():
    found = evidence(HIGH, NONE, SHORT, SHORT)
    assert found.parts[0] == Part(RATE, "only without from 4 of 4 seeds", None)
    assert "the largest learning rate that trains does not exist," in found.headline


def test_rates_that_train_neither_side_are_unknown():
    found = evidence(NONE, NONE, EXPLODING, EXPLODING)
    assert found.verdict == "not shown"
    assert {part.figures for part in found.parts} == {"on neither side from 4 of 4 seeds"}
    assert found.headline == (
        "With batch norm the largest learning rate that trains is unknown, "
        "and the longest first step before the loss explodes is unknown."
    )


def test_seeds_with_a_rate_on_one_side_only_are_counted_beside_the_others():
    trained = [rates("plain", s, *LOW) for s in range(4)]
    trained += [rates("batch norm", s, *(NONE if s == 3 else HIGH)) for s in range(4)]
    steps = [searched(side, s, *LONG) for side in SIDES for s in range(4)]
    found = judge(SETTINGS, trained, steps)
    assert found.parts[0].figures == (
        "100.00 (100.00 to 100.00) times as large with batch norm; only without from 1 of 4 seeds"
    )
    assert "is 100 times as large where both sides have one, " in found.headline


def test_the_line_search_is_the_loss_after_a_step_of_sgd():
    settings = LearningRates(hidden=(8,), step_sizes=(0.5,))
    found = line_search(settings, ("batch norm", 3))
    drawn = experiment_for(settings, hidden=(8,))
    model = drawn.network("batch norm", "relu", 3)
    inputs, targets = first_of(drawn.loaders(3).train)
    loss = F.cross_entropy(model(inputs), targets)
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.5).step()
    after = F.cross_entropy(model(inputs), targets)
    assert found["ratios"] == pytest.approx([(after / loss).item()], rel=1e-5)


def test_the_toy_run_measures_every_seed_on_both_sides():
    settings = CLAIM.settings("toy")
    found = run(settings)
    assert len(found.details) == 2 * settings.seeds
    assert [figure.kind for figure in found.figures] == ["lines", "dots"]
