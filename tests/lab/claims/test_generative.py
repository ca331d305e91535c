from dataclasses import replace

import pytest
import torch

from bnkit.lab.claims.generative import CLAIM, KINDS, judge, run

TOY = CLAIM.sizes["toy"]


def found(*scores, seeds=3):
    """What seeds would find, a little apart, with one score for each of the four networks."""
    return [
        {
            "kind": kind,
            "seed": seed,
            "distances": [9.0, 8.0, score],
            "score": None if score is None else score * (1 + 0.01 * seed * (kind == "neither")),
            "real": 0.2,
            "classes": 10,
            "samples": [[0.0, 1.0], [1.0, 0.0]] if seed == 0 else None,
            "data": [[1.0, 1.0], [1.0, 0.0]] if seed == 0 else None,
        }
        for kind, score in zip(KINDS, scores, strict=True)
        for seed in range(seeds)
    ]


@pytest.mark.parametrize(
    ("evidence", "verdict", "where"),
    [
        (found(30.0, 10.0, 15.0, 2.0), "holds", ""),
        (found(30.0, 40.0, 15.0, 2.0), "holds in part", "does not hold for batch norm in the gen"),
        (found(30.0, 40.0, 35.0, 32.0), "does not hold", ""),
        (found(30.0, 10.0, 15.0, 2.0, seeds=2), "not shown", ""),
        # Without batch norm no run ends in finite numbers: there is no ratio, and it is needed.
        (found(None, 10.0, 15.0, 2.0), "holds", ""),
        (found(30.0, None, 15.0, 2.0), "holds in part", "is not shown for batch norm in the gen"),
    ],
    ids=["for", "mixed", "against", "too few seeds", "neither fails", "the generator's fails"],
)
def test_the_verdict_follows_from_the_evidence(evidence, verdict, where):
    judged = judge(TOY, evidence)
    assert judged.verdict == verdict
    assert where in judged.where


def test_ratios_are_neither_over_with():
    judged = judge(TOY, found(30.0, 10.0, 15.0, 2.0, seeds=1))
    assert "in the generator only 3.00; " in judged.measured
    assert "in both networks 15.00" in judged.measured
    assert "15.0 times as far" in judged.figures[0].title


def test_a_toy_run_scores_every_placement_and_shows_its_samples():
    before = torch.get_rng_state()
    evidence = run(replace(TOY, seeds=1))
    assert torch.equal(torch.get_rng_state(), before)
    assert [row["kind"] for row in evidence.details] == list(KINDS)
    assert all(row["score"] > row["real"] >= 0 for row in evidence.details)  # six steps of training
    curves, pictures = evidence.figures
    assert all(line.x == (2, 4, 6) and len(line.y) == 3 for line in curves.lines)
    names = [line.name for line in curves.lines]
    assert [picture.panel for picture in pictures.pictures] == [*names, "data"]
    for picture in pictures.pictures:
        assert [len(row) for row in picture.values] == [
            30
        ] * 30  # 3 images of 8 pixels with margins
        assert all(0 <= value <= 1 for row in picture.values for value in row)
    assert run(replace(TOY, seeds=1)) == evidence  # all randomness comes from the seeds
