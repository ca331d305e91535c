import pytest
import torch
from torch import nn

from bnkit.layers.recurrent import BatchNormLSTM
from bnkit.observation import evaluating
from bnkit_claims.core.pixel_lstm import Reader, average_statistics, order_of


def test_a_permutation_is_the_same_each_time_and_has_every_pixel():
    order = order_of("permuted", 49)
    assert torch.equal(order, order_of("permuted", 49))
    assert torch.equal(order.sort().values, torch.arange(49))
    assert not torch.equal(order, torch.arange(49))


def test_the_lstm_sees_the_averaged_pixels_one_a_step_in_the_order_given():
    images = torch.arange(32.0).view(2, 1, 4, 4)
    reader = Reader(torch.tensor([3, 1, 0, 2]), 10, gamma=None, hidden=5, noise=0, pool=2)
    pooled = images.view(2, 2, 2, 2, 2).mean((2, 4)).flatten(1)  # rows, in row, columns, in column
    steps = pooled[:, [3, 1, 0, 2]].T[:, :, None]  # (4 steps, 2 images, 1 pixel)
    torch.testing.assert_close(reader(images), reader.head(reader.lstm(steps)[0][-1]))


@pytest.mark.parametrize("gamma", [None, 0.1, 1.0])
def test_the_initialisation_is_the_authors(gamma):
    reader = Reader(order_of("in order", 4), 10, gamma=gamma, hidden=5)
    weight = reader.lstm.weight_ih_l0
    torch.testing.assert_close(weight.T @ weight, torch.eye(1))
    assert torch.equal(reader.lstm.weight_hh_l0, torch.eye(5).repeat(4, 1))
    assert not reader.lstm.bias_ih_l0.any()
    if gamma is not None:
        for name in ("ih", "hh", "c"):
            norm = getattr(reader.lstm, f"batchnorm_{name}_l0")
            torch.testing.assert_close(norm.weight, torch.full_like(norm.weight, gamma))


def test_statistics_are_plain_averages_and_forget_what_was_before():
    reader = Reader(order_of("in order", 4), 3, gamma=0.1, hidden=5)
    batches = [torch.rand(8, 1, 2, 2), torch.rand(8, 1, 2, 2)]
    reader(100 * torch.rand(8, 1, 2, 2))  # stale
    average_statistics(reader, batches)
    inputs = [batch.flatten(1).T[:, :, None] @ reader.lstm.weight_ih_l0.T for batch in batches]
    expected = torch.stack([step.mean(1) for step in inputs]).mean(0)  # (4 steps, 20 gates)
    torch.testing.assert_close(reader.lstm.batchnorm_ih_l0.running_mean, expected)


def test_evaluation_does_not_depend_on_the_mini_batch_and_torchs_lstm_has_nothing_to_average():
    images = torch.rand(8, 1, 2, 2)
    reader = Reader(order_of("in order", 4), 3, gamma=0.1, hidden=5, noise=0)
    assert isinstance(reader.lstm, BatchNormLSTM)
    average_statistics(reader, [images])
    with evaluating(reader), torch.no_grad():
        torch.testing.assert_close(reader(images)[:3], reader(images[:3]))
    plain = Reader(order_of("in order", 4), 3, gamma=None, hidden=5)
    assert isinstance(plain.lstm, nn.LSTM)
    average_statistics(plain, iter([None]))  # takes no mini-batch
