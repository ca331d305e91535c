from dataclasses import replace

import pytest
import torch

from bnkit_claims.claims.recurrent import CLAIM, READ, judge, run
from bnkit_claims.core.evidence import Beside, Part

TOY = CLAIM.sizes["toy"]


def found(*, plain, batch_norm, in_order_plain=(0.3, 0.5), gamma_1=0.2, seeds=3):
    """What seeds would find, a little apart: (mean accuracy, test accuracy) of the two networks."""
    of_kind = {
        ("in order", "plain"): in_order_plain,
        ("permuted", "plain"): plain,
        ("in order", "gamma 0.1"): (0.5, 0.5),
        ("permuted", "gamma 0.1"): batch_norm,
        ("permuted", "gamma 1"): (0.1, gamma_1),
    }
    return [
        {
            "order": order,
            "kind": kind,
            "seed": seed,
            "accuracies": [of_kind[order, kind][0] + 0.001 * seed * (kind == "plain")] * 2,
            "test": of_kind[order, kind][1] + 0.001 * seed * (kind != "gamma 0.1"),
        }
        for order, kind in READ
        for seed in range(seeds)
    ]


@pytest.mark.parametrize(
    ("evidence", "verdict", "shown", "changes"),
    [
        (
            found(plain=(0.4, 0.5), batch_norm=(0.6, 0.7)),
            "holds",
            [True, True, True, True],
            ("20 points higher", "20 points higher", "50 points higher"),
        ),
        (
            found(plain=(0.4, 0.7), batch_norm=(0.6, 0.5)),
            "holds in part",
            [True, True, False, True],
            ("20 points higher", "20 points lower", "30 points higher"),
        ),
        (
            found(plain=(0.6, 0.7), batch_norm=(0.4, 0.5), in_order_plain=(0.7, 0.8), gamma_1=0.7),
            "does not hold",
            [False, False, False, False],
            ("20 points lower", "20 points lower", "20 points lower"),
        ),
        (
            found(plain=(0.4, 0.5), batch_norm=(0.6, 0.7), seeds=2),
            "not shown",
            [None, None, None, None],
            ("20 points higher", "20 points higher", "50 points higher"),
        ),
    ],
    ids=["for", "mixed", "against", "too few seeds"],
)
def test_the_verdict_and_the_headline_follow_from_the_evidence(evidence, verdict, shown, changes):
    judged = judge(TOY, evidence)
    assert judged.verdict == verdict
    assert [part.shown for part in judged.parts] == shown
    speed, final, small = changes
    assert judged.headline == (
        f"On permuted pixels an LSTM's accuracy with recurrent batch norm is {speed} over training "
        f"and {final} at its end; gamma 0.1 ends {small} than gamma 1."
    )


def test_differences_are_in_percentage_points_batch_norm_less_plain():
    judged = judge(TOY, found(plain=(0.4, 0.5), batch_norm=(0.6, 0.7), seeds=1))
    assert judged.parts == (
        Part("faster learning on pixels in order", "+20.00 points averaged over training", None),
        Part("faster learning on permuted pixels", "+20.00 points averaged over training", None),
        Part("a better end on permuted pixels", "+20.00 points at the end", None),
        Part("gamma 0.1 rather than 1 on permuted pixels", "+50.00 points at the end", None),
    )
    assert judged.beside == (Beside("a better end on pixels in order", "+0.00 points at the end"),)


def test_differences_have_their_intervals():
    judged = judge(TOY, found(plain=(0.4, 0.5), batch_norm=(0.6, 0.7)))
    assert judged.parts[1].figures == "+19.90 (+19.65 to +20.15) points averaged over training"
    _, final = judged.figures
    assert final.title == "Recurrent batch norm ends -0.1 points in order, +19.9 points permuted"


def test_a_toy_run_reads_every_order_and_kind_and_leaves_the_generators_alone():
    before = torch.get_rng_state()
    evidence = run(replace(TOY, seeds=2))
    assert torch.equal(torch.get_rng_state(), before)
    assert [(row["order"], row["kind"]) for row in evidence.details[::2]] == list(READ)
    curves, dots = evidence.figures
    assert {line.panel for line in curves.lines} == {"pixels in order", "pixels permuted"}
    assert all(line.x == (3, 6) and len(line.y) == 2 for line in curves.lines)
    assert len(dots.dots) == len(READ)
    again = run(replace(TOY, seeds=1))
    assert again.details == evidence.details[::2]  # all randomness comes from the seeds
