from dataclasses import replace

import pytest
import torch

from bnkit.lab.claims.scale_invariance import CLAIM, ScaleInvariance, grow, identities, judge, run
from bnkit.lab.records import SIDES

TOY = CLAIM.sizes["toy"]
INVENTED = ScaleInvariance(scales=(0.1, 10.0), learning_rates=(1.0,), steps=10, every=10)
EXACT = {"output": 1e-15, "Jacobian": 1e-15, "gradient": 1e-15}
OFF = {"output": 1e-15, "Jacobian": 0.5, "gradient": 1e-15}


def scaled(without_eps=EXACT, with_eps=(EXACT, EXACT)):
    return [{"seed": s, "without eps": [without_eps] * 2, "with eps": with_eps} for s in range(3)]


def trained(plain, batch_norm, seeds=3):
    """What training finds where the weights grow by these factors, a little apart by seed."""
    growth = {"plain": plain, "batch norm": batch_norm}
    return [
        {
            "side": side,
            "rate": 1.0,
            "seed": seed,
            "growth": growth[side] and growth[side] * (1 + 0.001 * seed * (side == "plain")),
            "along": 0.1,
            "norms": [1.0, growth[side]],
            "effective": [0.1, 0.05],
        }
        for side in SIDES
        for seed in range(seeds)
    ]


@pytest.mark.parametrize(
    ("layers", "networks", "verdict", "where"),
    [
        (scaled(), trained(1.5, 1.1), "holds", ""),
        (scaled(), trained(None, 1.1), "holds", ""),
        (scaled(OFF, (OFF, OFF)), trained(1.1, 1.5), "does not hold", ""),
        (scaled(with_eps=(OFF, EXACT)), trained(1.5, 1.1), "holds in part", "leave eps out"),
        (scaled(), trained(1.1, 1.5), "holds in part", "does not hold for stable growth"),
        (scaled(), trained(1.5, 1.1, seeds=2), "holds in part", "is not shown for stable growth"),
    ],
)
def test_the_verdict_follows_from_the_evidence(layers, networks, verdict, where):
    evidence = judge(INVENTED, layers, networks)
    assert evidence.verdict == verdict
    assert where in evidence.where


def test_a_toy_run_finds_the_identities_whatever_the_seed():
    evidence = run(TOY)
    assert [figure.kind for figure in evidence.figures] == ["lines"] * 3
    layers = [row for row in evidence.details if "without eps" in row]
    assert len(layers) == TOY.seeds
    assert max(max(row["without eps"]) for row in layers) < 1e-9


def test_errors_are_those_of_the_algebra_with_eps():
    """One unit of variance v: output · a·sqrt((v + eps) / (a²·v + eps)) is what it becomes."""
    u = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    weight = torch.ones(1, 1, dtype=torch.float64)
    a, eps = 0.5, 0.1
    factor = a * ((1 + eps) / (a * a + eps)) ** 0.5
    assert identities(u, weight, a, eps)["output"] == pytest.approx(1 - factor, rel=1e-12)


def test_a_run_that_diverges_has_no_growth():
    found = grow(replace(TOY, steps=40), ("plain", 1e6, 0))
    assert found["growth"] is None
    assert found["norms"] == [1.0]


def test_with_batch_norm_the_gradient_is_at_right_angles_to_the_weights():
    found = {side: grow(replace(TOY, steps=20), (side, 0.1, 0))["along"] for side in SIDES}
    assert found["batch norm"] < 0.01 < found["plain"]
