import math
from dataclasses import replace

import pytest
import torch

from bnkit.experiments.results import SIDES
from bnkit_claims.claims.scale_invariance import (
    CLAIM,
    ScaleInvariance,
    grow,
    identities,
    judge,
    run,
)
from bnkit_claims.core.evidence import Beside, Part

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


SAME = "With its weights multiplied by 0.1 to 10 the layer stays the same within 1%"
LESS = "in training the weights are shown to grow less with batch norm at 1 of 1 learning rates."
NOT_LESS = LESS.replace("1 of 1", "0 of 1")
AGAINST = (
    "Contrary to its sources, which leave eps out, the layer does depend on the scale of its "
    "weights where the variance of its units comes close to eps (1e-05)."
)


@pytest.mark.parametrize(
    ("layers", "networks", "verdict", "shown", "headline"),
    [
        (scaled(), trained(1.5, 1.1), "holds", (True, True, True, True), f"{SAME}; {LESS}"),
        (scaled(), trained(None, 1.1), "holds", (True, True, True, True), f"{SAME}; {LESS}"),
        (
            scaled(OFF, (OFF, OFF)),
            trained(1.1, 1.5),
            "does not hold",
            (False, False, False, False),
            f"With its weights multiplied by 0.1 or 10 the layer is off by up to 50%; {NOT_LESS}",
        ),
        (
            scaled(with_eps=(OFF, EXACT)),
            trained(1.5, 1.1),
            "holds in part",
            (True, False, True, True),
            f"With its weights multiplied by 0.1 the layer is off by up to 50%; {LESS}",
        ),
        (
            scaled(),
            trained(1.1, 1.5),
            "holds in part",
            (True, True, True, False),
            f"{SAME}; {NOT_LESS}",
        ),
        (
            scaled(),
            trained(1.5, 1.1, seeds=2),
            "holds in part",
            (True, True, True, None),
            f"{SAME}; {NOT_LESS}",
        ),
    ],
)
def test_the_verdict_follows_from_the_evidence(layers, networks, verdict, shown, headline):
    evidence = judge(INVENTED, layers, networks)
    assert tuple(part.shown for part in evidence.parts) == shown
    assert evidence.verdict == verdict
    assert evidence.headline == headline
    assert evidence.notes == ((AGAINST,) if shown[0] and False in shown[1:3] else ())


def test_parts_tell_how_far_off_the_layer_is_and_how_much_its_weights_grow():
    evidence = judge(INVENTED, scaled(with_eps=(OFF, EXACT)), trained(1.5, 1.5))
    assert evidence.parts == (
        Part("the same layer without eps", "off by up to 1e-15", True),
        Part("the same layer with weights times 0.1", "off by up to 50.00%", False),
        Part("the same layer with weights times 10", "off by up to 0.00%", True),
        Part(
            "less growth of weights at learning rate 1",
            "1.00 (1.00 to 1.00) times as much without batch norm",
            False,
        ),
    )
    share = "share of a gradient along the weights"
    assert evidence.beside == (Beside(share, "10.0% plain, 10.0% batch norm"),)


def test_errors_that_are_not_finite_have_no_bound():
    evidence = judge(INVENTED, scaled({"output": math.nan}), trained(1.5, 1.1))
    assert evidence.parts[0] == Part("the same layer without eps", "off without bound", False)
    evidence = judge(INVENTED, scaled(with_eps=(EXACT, {"output": math.inf})), trained(1.5, 1.1))
    scaled_up = "With its weights multiplied by 10 the layer is off without bound"
    assert evidence.headline == f"{scaled_up}; {LESS}"


@pytest.mark.parametrize(
    ("plain", "batch_norm", "figures", "shown"),
    [
        (None, 1.1, "3/3 plain runs diverged", True),
        (1.1, None, "3/3 batch norm runs diverged", None),
        (1e24, 1.1, "over a million times as much without batch norm", True),
        (None, None, "3/3 plain runs diverged, 3/3 batch norm runs diverged", None),
    ],
)
def test_runs_that_diverge_are_counted_and_those_about_to_are_told(
    plain, batch_norm, figures, shown
):
    growth = judge(INVENTED, scaled(), trained(plain, batch_norm)).parts[-1]
    assert growth == Part("less growth of weights at learning rate 1", figures, shown)


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
