import torch

from bnkit.experiments.training import Training, train
from bnkit_claims.core.claim import ClaimSettings
from bnkit_claims.core.trainings import experiment_for, in_segments

DRAWN = experiment_for(ClaimSettings(), hidden=[8])


def test_three_segments_are_one_training():
    """Batches go on where they stopped, and plain SGD has no memory."""
    pieces, whole = (DRAWN.network("batch norm", "relu", 0) for _ in range(2))
    list(in_segments(pieces, DRAWN.loaders(0), learning_rate=0.1, steps=9, every=3))
    loaders = DRAWN.loaders(0)
    train(whole, loaders.train, loaders.held_out, Training(0.1, steps=9, evaluate_every=9))
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(pieces.state_dict()[name], value, rtol=0, atol=0)


def test_a_run_that_diverges_ends_there():
    model = DRAWN.network("plain", "relu", 0)
    found = list(in_segments(model, DRAWN.loaders(0), learning_rate=1e20, steps=90, every=5))
    assert [segment and segment.outcome for segment in found] == [None, "diverged"]
