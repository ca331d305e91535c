import pytest
import torch
import torch.nn.functional as F

from bnkit.lab.claiming.material import subject
from bnkit.lab.claims.learning_rates import CLAIM, LearningRates, judge, line_search, run
from bnkit.lab.loaders import first_of

SETTINGS = LearningRates(learning_rates=(0.1, 1.0, 10.0), step_sizes=(1.0, 10.0, 100.0))


def rates(side, seed, *accuracies):
    found = dict(zip(map(str, SETTINGS.learning_rates), accuracies, strict=True))
    return {"side": side, "seed": seed, "accuracies": found}


def searched(side, seed, *ratios):
    return {"side": side, "seed": seed, "ratios": list(ratios)}


LOW, HIGH = (0.95, 0.1, None), (0.95, 0.95, 0.95)
SHORT, LONG = (1.0, 2e3, 1.0), (1.0, 1.0, 2.0)


def evidence(plain_rates, bn_rates, plain_search, bn_search, seeds=4):
    trained = [rates("plain", s, *plain_rates) for s in range(seeds)]
    trained += [rates("batch norm", s, *bn_rates) for s in range(seeds)]
    found = [searched("plain", s, *plain_search) for s in range(seeds)]
    found += [searched("batch norm", s, *bn_search) for s in range(seeds)]
    return judge(SETTINGS, trained, found)


def test_higher_rates_and_longer_steps_hold():
    found = evidence(LOW, HIGH, SHORT, LONG)
    assert found.verdict == "holds"
    assert "100.00 (100.00 to 100.00) times as large" in found.measured


def test_equal_rates_and_steps_do_not_hold():
    assert evidence(LOW, LOW, SHORT, SHORT).verdict == "does not hold"


def test_only_one_of_them_holds_in_part():
    found = evidence(LOW, HIGH, LONG, SHORT)
    assert found.verdict == "holds in part"
    assert found.where == (
        "holds for the largest learning rate that trains; does not hold for the longest first step"
    )


def test_two_seeds_show_nothing():
    assert evidence(LOW, HIGH, SHORT, LONG, seeds=2).verdict == "not shown"


def test_a_plain_network_that_trains_at_no_rate_is_counted():
    found = evidence((0.1, 0.1, None), HIGH, SHORT, LONG)
    assert found.verdict == "holds"
    assert found.details[0]["largest rate"] is None


def test_the_line_search_is_the_loss_after_a_step_of_sgd():
    settings = LearningRates(hidden=(8,), step_sizes=(0.5,))
    found = line_search(settings, ("batch norm", 3))
    drawn = subject(settings, hidden=(8,))
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
