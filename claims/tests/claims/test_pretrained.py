"""The verdict on insertion follows from moved outputs and from accuracy after fine-tuning."""

import pytest
import torch
from torch import nn

from bnkit_claims.claims.pretrained import (
    CLAIM,
    PLAIN,
    ROOT,
    VARIANCE,
    by_variance,
    judge,
    outputs,
    with_batch_norm,
)
from bnkit_claims.core.evidence import Beside, Part

AGAINST = (
    "Contrary to its source, the published recipe, with the variance as weight, changes what the "
    "network computes."
)
ROOT_MOVES, VARIANCE_MOVES, GAIN, LEAD = (
    "no change, inserted with the root of the variance",
    "no change, inserted with the variance, as published",
    "a higher accuracy after fine-tuning than before",
    "a higher accuracy than fine-tuning without batch norm",
)


def found(*, root=1e-7, variance=0.5, plain=0.95, tuned=0.96, seeds=3):
    """Return networks of 95% that end fine-tuning at `plain` and, with batch norm, at `tuned`.

    The variance as weight takes them to 60% at first.
    """

    def network(moved, end, start=0.95):
        before, after = ({"loss": 0.2, "accuracy": accuracy} for accuracy in (start, end))
        curve = {"steps": [10, 20], "accuracies": [0.95, end]}
        return {"moved": moved, "before": before, "after": after, **curve}

    return [
        {
            "seed": seed,
            PLAIN: network(0.0, plain),
            ROOT: network(root, tuned),
            VARIANCE: network(variance, tuned, start=0.6),
        }
        for seed in range(seeds)
    ]


def test_the_toy_run_inserts_without_a_change_by_the_root_alone():
    evidence = CLAIM.run(CLAIM.settings("toy"))
    assert [figure.kind for figure in evidence.figures] == ["dots", "lines"]
    assert len(evidence.details) == 9  # three seeds of three networks
    for row in evidence.details:
        assert (row["outputs moved"] < 1e-4) == (row["network"] != VARIANCE)
    assert evidence.notes == (AGAINST,)


def test_insertions_that_change_nothing_and_a_gain_hold():
    evidence = judge(found(variance=1e-6))
    assert evidence.verdict == "holds"
    assert evidence.parts == (
        Part(ROOT_MOVES, "outputs move by 1e-07 to 1e-07 times the largest, over seeds", True),
        Part(VARIANCE_MOVES, "outputs move by 1e-06 to 1e-06 times the largest, over seeds", True),
        Part(GAIN, "+1.00 (+1.00 to +1.00) points", True),
        Part(LEAD, "+1.00 (+1.00 to +1.00) points", True),
    )
    assert evidence.notes == ()
    assert evidence.headline == (
        "Inserted with the root of the variance as weight, batch norm changes no output, and "
        "fine-tuning adds +1.0 points (+0.0 without it); with the variance, as published, it "
        "changes accuracy from 95.0 to 60.0%."
    )


def test_what_the_variance_as_weight_does_is_told_beside():
    assert judge(found()).beside == (
        Beside("test loss on insertion with the variance", "from 0.200 to 0.200"),
        Beside("test accuracy on insertion with the variance", "from 95.00% to 60.00%"),
    )


def test_the_published_recipe_that_changes_the_network_is_said_plainly():
    evidence = judge(found())
    assert evidence.verdict == "holds in part"
    assert [part.shown for part in evidence.parts] == [True, False, True, True]
    assert evidence.parts[1].what == VARIANCE_MOVES
    assert evidence.notes == (AGAINST,)


def test_insertions_that_change_the_network_and_no_gain_do_not_hold():
    evidence = judge(found(root=0.1, plain=0.97, tuned=0.94))
    assert evidence.verdict == "does not hold"
    assert [part.shown for part in evidence.parts] == [False] * 4
    assert evidence.headline.startswith(
        "Inserted with the root of the variance as weight, batch norm changes outputs, and "
        "fine-tuning adds -1.0 points (+2.0 without it);"
    )


def test_no_gain_at_all_does_not_hold():
    assert judge(found(root=0.1, tuned=0.95)).verdict == "does not hold"


def test_a_gain_that_fine_tuning_brings_without_batch_norm_too_holds_in_part():
    evidence = judge(found(variance=1e-6, plain=0.97, tuned=0.96))
    assert evidence.verdict == "holds in part"
    assert [part.shown for part in evidence.parts] == [True, True, True, False]
    assert evidence.parts[3] == Part(LEAD, "-1.00 (-1.00 to -1.00) points", False)


def test_two_seeds_show_nothing():
    evidence = judge(found(seeds=2))
    assert evidence.verdict == "not shown"
    assert evidence.parts[2].figures == "+1.00 points"
    assert "batch norm may change outputs, and" in evidence.headline
    assert evidence.notes == ()


def test_insertions_that_move_outputs_with_some_seeds_only_are_not_shown():
    rows = [*found(seeds=2), *found(root=0.1, seeds=1)]
    evidence = judge(rows)
    assert evidence.parts[0] == Part(
        ROOT_MOVES, "outputs move by 1e-07 to 0.1 times the largest, over seeds", None
    )
    assert "batch norm may change outputs, and" in evidence.headline


@pytest.fixture
def trained():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 3)
    )
    batches = [(torch.randn(50, 1, 6, 6), torch.zeros(50)) for _ in range(3)]
    return model, batches


def test_batch_norm_goes_after_the_hidden_dense_activations_and_changes_nothing(trained):
    model, batches = trained
    inserted = with_batch_norm(model, batches)
    layers = [m for m in inserted.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert [layer.num_features for layer in layers] == [8]
    torch.testing.assert_close(outputs(inserted, batches), outputs(model, batches))
    hidden = torch.cat([model[:5](x) for x, _ in batches])
    torch.testing.assert_close(layers[0].running_mean, hidden.mean(0))
    root = (layers[0].running_var + layers[0].eps).sqrt()
    torch.testing.assert_close(layers[0].weight, root)


def test_by_the_variance_deviations_are_multiplied_by_the_root_of_the_variance(trained):
    model, batches = trained
    changed = by_variance(with_batch_norm(model, batches))
    hidden = torch.cat([model[:5](x) for x, _ in batches])
    mean, variance = hidden.mean(0), hidden.var(0)
    eps = 1e-5
    expected = model[5](mean + (hidden - mean) * variance / (variance + eps).sqrt())
    torch.testing.assert_close(outputs(changed, batches), expected, rtol=1e-3, atol=1e-5)
