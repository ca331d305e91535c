"""The verdict on small mini-batches follows from the gain of each remedy."""

import pytest
import torch
from torch import nn

from bnkit.surgery import add
from bnkit_claims.claims.small_batches import CLAIM, SmallBatches, ghost, group, judge, renorm
from bnkit_claims.core.evidence import Part

SETTINGS = SmallBatches(batch_sizes=(2, 64))


def trained(*, seeds=3, small=0.5, large=0.9, remedies=(0.8, 0.7, 0.6), ghosted=0.95):
    """Return invented accuracies; `remedies` at 2 are group norm, renorm and recalibration."""
    grouped, renormed, recalibrated = remedies
    rows = [
        ("batch norm", 2, small, recalibrated),
        ("batch norm", 64, large, large),
        ("renorm", 2, renormed, renormed),
        ("renorm", 64, large, large),
        ("group norm", 2, grouped, grouped),
        ("group norm", 64, large, large),
        ("ghost", 64, ghosted, ghosted),
    ]
    return [
        {
            "method": method,
            "batch size": size,
            "seed": seed,
            "moving average": moving + seed / 1e5,
            "recalibrated": better + seed / 1e5,
        }
        for seed in range(seeds)
        for method, size, moving, better in rows
    ]


def test_the_toy_run_trains_every_kind_at_every_size_but_ghost_where_it_is_batch_norm():
    evidence = CLAIM.run(CLAIM.settings("toy"))
    assert {(row["method"], row["batch size"]) for row in evidence.details} == {
        *((method, size) for method in ("batch norm", "renorm", "group norm") for size in (2, 32)),
        ("ghost", 32),
    }
    curve = evidence.figures[0].lines[0]
    assert curve.x == (2, 32)
    assert all(0 < accuracy <= 100 for accuracy in curve.y)


def test_every_remedy_that_gains_holds():
    evidence = judge(SETTINGS, trained())
    assert evidence.verdict == "holds"
    gained = {
        "mini-batches of 64 over 2": "+40.00 (+40.00 to +40.00) points gained",
        "group norm in mini-batches of 2": "+30.00 (+30.00 to +30.00) points gained",
        "renorm in mini-batches of 2": "+20.00 (+20.00 to +20.00) points gained",
        "recalibrated statistics in mini-batches of 2": "+10.00 (+10.00 to +10.00) points gained",
        "ghost batch norm in mini-batches of 64": "+5.00 (+5.00 to +5.00) points gained",
    }
    assert evidence.parts == tuple(Part(what, gain, True) for what, gain in gained.items())
    assert evidence.headline == (
        "From mini-batches of 64 to 2 batch norm loses 40 points of test accuracy; 4 of 4 remedies "
        "demonstrably helped, most of all group norm in mini-batches of 2, by 30 points."
    )


def test_equal_accuracies_do_not_hold():
    same = trained(small=0.9, remedies=(0.9, 0.9, 0.9), ghosted=0.9)
    evidence = judge(SETTINGS, same)
    assert evidence.verdict == "does not hold"
    assert [part.shown for part in evidence.parts] == [False] * 5


def test_a_batch_norm_that_gains_in_small_mini_batches_is_said_plainly():
    evidence = judge(SETTINGS, trained(small=0.95, large=0.9, ghosted=0.85))
    assert evidence.verdict == "does not hold"
    assert evidence.headline == (
        "From mini-batches of 64 to 2 batch norm gains 5 points of test accuracy; none of 4 "
        "remedies demonstrably helped."
    )


def test_remedies_that_do_worse_are_named():
    evidence = judge(SETTINGS, trained(remedies=(0.8, 0.7, 0.4), ghosted=0.8))
    assert evidence.verdict == "holds in part"
    assert [part.what for part in evidence.parts if part.shown is False] == [
        "recalibrated statistics in mini-batches of 2",
        "ghost batch norm in mini-batches of 64",
    ]
    assert [part.shown for part in evidence.parts] == [True, True, True, False, False]
    assert "; 2 of 4 remedies demonstrably helped, most of all group norm" in evidence.headline


def test_two_seeds_show_nothing():
    evidence = judge(SETTINGS, trained(seeds=2))
    assert evidence.verdict == "not shown"
    assert evidence.parts[0].figures == "+40.00 points gained"
    assert evidence.headline.endswith("none of 4 remedies demonstrably helped.")


@pytest.fixture
def twin():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    return add(plain, torch.zeros(2, 3))


def test_group_norm_normalises_each_example_by_itself_and_starts_with_weight_one(twin):
    inputs = torch.randn(5, 3)
    weight = twin[0].weight
    changed = group(twin, SETTINGS, 10)
    expected = nn.functional.group_norm(inputs @ weight.T, SETTINGS.groups)
    assert torch.allclose(changed[0](inputs), expected, atol=1e-6)
    assert torch.equal(changed(inputs)[0], changed(inputs[:1])[0])


def test_ghost_normalises_a_mini_batch_in_parts(twin):
    inputs, changed = torch.randn(32, 3), ghost(twin, SETTINGS, 10)
    parts = torch.cat([twin(part) for part in inputs.split(SETTINGS.ghost)])
    assert torch.allclose(changed(inputs), parts, atol=1e-5)


def test_renorm_begins_as_batch_norm(twin):
    inputs, changed = torch.randn(16, 3), renorm(twin, SETTINGS, 100)
    assert torch.allclose(changed(inputs), twin(inputs), atol=1e-5)


def test_a_run_that_diverges_counts_as_nothing(monkeypatch):
    monkeypatch.setattr("bnkit_claims.claims.small_batches.train_to_end", lambda *_, **__: False)
    from bnkit_claims.claims.small_batches import training  # noqa: PLC0415  as patched

    found = training(CLAIM.settings("toy"), ("batch norm", 2, 0))
    assert (found["moving average"], found["recalibrated"]) == (0.0, 0.0)
