from dataclasses import replace
from itertools import product

import pytest
import torch

from bnkit.experiments.data import load
from bnkit.experiments.results import SIDES
from bnkit.observation import normalising_by_batch_statistics
from bnkit_claims.claims.jacobians import (
    CLAIM,
    WHENS,
    Jacobians,
    judge,
    run,
    singular_values,
    summary,
)
from bnkit_claims.core.evidence import Part
from bnkit_claims.core.trainings import experiment_for

TOY = CLAIM.sizes["toy"]
INVENTED = Jacobians(activations=("relu",), learning_rates=(0.1,), inits=("glorot",))


def found(start, end, seeds=4):
    """Shares close to 1 of (plain, batch norm) at the start and at the end, a little apart."""
    return [
        {
            "side": side,
            "activation": "relu",
            "init": "glorot",
            "seed": seed,
            **{
                when: {"close": share[place] + 0.001 * seed * place, "quantiles": [0.0, 1.0]}
                for when, share in zip(WHENS, (start, end), strict=True)
            },
        }
        for (place, side), seed in product(enumerate(SIDES), range(seeds))
    ]


@pytest.mark.parametrize(
    ("start", "end", "verdict", "shown", "told"),
    [
        ((0.1, 0.8), (0.2, 0.9), "holds", (True, True, True), "85% (relu); 2 of 2"),
        ((0.9, 0.3), (0.9, 0.4), "does not hold", (False, False, False), "35% (relu); 0 of 2"),
        ((0.1, 0.3), (0.2, 0.4), "holds in part", (True, True, False), "35% (relu); 2 of 2"),
        ((0.1, 0.8), (0.9, 0.6), "holds in part", (True, False, True), "70% (relu); 1 of 2"),
        ((0.1, 0.8), (0.1, 0.4), "holds in part", (True, True, None), "60% (relu); 2 of 2"),
    ],
)
def test_the_verdict_follows_from_the_evidence(start, end, verdict, shown, told):
    evidence = judge(INVENTED, found(start, end))
    assert tuple(part.shown for part in evidence.parts) == shown
    assert evidence.verdict == verdict
    share, more = told.split("; ")
    assert evidence.headline == (
        f"With batch norm {share} of the singular values are close to 1; {more} comparisons show "
        f"more than without it."
    )


def test_parts_tell_the_gains_and_the_shares():
    evidence = judge(INVENTED, found((0.1, 0.8), (0.9, 0.6)))
    assert evidence.parts == (
        Part(
            "closer to 1: relu from glorot, at the start", "+70.15 (+69.94 to +70.36) points", True
        ),
        Part(
            "closer to 1: relu from glorot, after training",
            "-29.85 (-30.06 to -29.64) points",
            False,
        ),
        Part("most values close to 1: relu", "70%, from 60% to 80% over the runs", True),
    )


def test_two_seeds_show_nothing():
    evidence = judge(INVENTED, found((0.1, 0.8), (0.2, 0.9), seeds=2))
    assert evidence.verdict == "not shown"
    assert [part.shown for part in evidence.parts] == [None] * 3
    assert "; 0 of 2 comparisons show more" in evidence.headline


def test_without_a_single_network_nothing_is_known():
    evidence = judge(INVENTED, [])
    assert [part.shown for part in evidence.parts] == [None] * 3
    assert evidence.parts[-1].figures == "unknown"
    assert evidence.headline.startswith("With batch norm an unknown share of the singular values")


def test_a_toy_run_measures_both_sides_at_both_moments():
    evidence = run(TOY)
    assert [figure.kind for figure in evidence.figures] == ["lines", "dots"]
    assert len(evidence.details) == 2 * TOY.seeds
    plain = [row["close at the start"] for row in evidence.details if row["side"] == "plain"]
    assert max(plain) < 0.1  # a sigmoid's slope is at most 1/4, so Glorot's layers shrink all


def test_plain_jacobians_are_weights_times_slopes():
    drawn = experiment_for(TOY, hidden=[5, 5], activations=["sigmoid"], init="glorot")
    model = drawn.network("plain", "sigmoid", 0)
    z = model[1](model[0](load("digits").held_out.inputs[: TOY.examples]))
    slopes = torch.sigmoid(z) * (1 - torch.sigmoid(z))  # (examples, 5)
    expected = torch.linalg.svdvals(model[3].weight * slopes[:, None, :])
    found = singular_values(TOY, model, drawn.loaders(0))
    torch.testing.assert_close(found[0], expected)


def test_with_batch_norm_they_are_divided_by_the_standard_deviation_of_the_unit():
    drawn = experiment_for(TOY, hidden=[5, 5], activations=["sigmoid"], init="glorot")
    model = drawn.network("batch norm", "sigmoid", 0)
    train = load("digits").train.inputs
    with normalising_by_batch_statistics(model), torch.no_grad():
        hidden = torch.sigmoid(model[1](model[0](train)))
        mean_and_deviation = hidden.mean(0), (hidden @ model[3].weight.T).std(0)
    found = singular_values(replace(TOY, examples=100), model, drawn.loaders(0))
    slopes = mean_and_deviation[0] * (1 - mean_and_deviation[0])  # of a typical example
    typical = torch.linalg.svdvals(model[3].weight * slopes / mean_and_deviation[1][:, None])
    # The typical example stands for all, and all images for 20 mini-batches: so only roughly.
    torch.testing.assert_close(found[0].mean(0), typical, rtol=0.2, atol=0.02)


def test_a_share_counts_both_ends():
    values = torch.tensor([0.0, 0.49, 0.5, 1.0, 2.0, 2.1])
    assert summary(values, within=2)["close"] == pytest.approx(3 / 6)
