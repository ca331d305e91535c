from functools import reduce
from operator import add

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bnkit.moments import Moments
from cases import CASES, Case, as_it_is, channels_last, every_second_value, seeded


def over_all_but_channels(x):
    return x.double().movedim(1, 0).flatten(1)  # (C, everything else)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_moments_are_those_that_torch_finds_in_float64(case: Case):
    x = case.input(torch.float32)
    channels, moments = over_all_but_channels(x), Moments.of(x)
    assert moments.count == channels.shape[1]
    assert moments.mean.dtype == moments.deviations.dtype == torch.float64
    torch.testing.assert_close(moments.mean, channels.mean(1))
    torch.testing.assert_close(moments.variance, channels.var(1, correction=0))
    torch.testing.assert_close(moments.unbiased_variance, channels.var(1))


@settings(deadline=None, max_examples=50)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    shift=st.sampled_from([0.0, 1e4, -1e6]),
    drift=st.sampled_from([0.0, 1.0, 1e6]),
    seed=st.integers(0, 2**32),
)
def test_pooled_moments_are_those_of_all_values_together(sizes, shift, drift, seed):
    generator = seeded(seed)
    batches = [
        torch.randn(size, 3, 2, generator=generator, dtype=torch.float64) + shift + drift * index
        for index, size in enumerate(sizes)
    ]
    together, pooled = Moments.of(torch.cat(batches)), reduce(add, map(Moments.of, batches))
    assert pooled.count == together.count
    torch.testing.assert_close(pooled.mean, together.mean, rtol=1e-12, atol=1e-8)
    torch.testing.assert_close(pooled.variance, together.variance, rtol=1e-7, atol=0)


def test_order_and_grouping_of_pooling_do_not_matter():
    first, second, third = (
        Moments.of(torch.arange(n * 2.0).reshape(n, 2) ** power)
        for n, power in ((2, 1), (5, 2), (3, 3))
    )
    for pooled in ((first + second) + third, first + (second + third), third + second + first):
        torch.testing.assert_close(pooled.mean, (first + second + third).mean)
        torch.testing.assert_close(pooled.deviations, (first + second + third).deviations)


def test_variance_survives_a_mean_that_takes_all_digits_of_the_square():
    x = torch.tensor([1e8 - 1, 1e8, 1e8 + 1], dtype=torch.float64)[:, None]
    assert Moments.of(x).variance.item() == 2 / 3


def test_channels_may_be_on_any_axis():
    x = torch.randn(4, 5, 3)
    last, first = Moments.of(x, channel_axis=-1), Moments.of(x.movedim(-1, 0), channel_axis=0)
    torch.testing.assert_close(last.mean, x.double().mean((0, 1)))
    torch.testing.assert_close(first.deviations, last.deviations)


def test_moments_record_no_gradients():
    assert not Moments.of(torch.randn(4, 2, requires_grad=True)).mean.requires_grad


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
def test_values_that_are_not_finite_spoil_their_channel_only(bad):
    x = torch.randn(4, 2)
    x[1, 0] = bad
    moments = Moments.of(x) + Moments.of(torch.randn(3, 2))
    assert moments.variance.isnan().tolist() == [True, False]


def test_one_value_per_channel_has_a_variance_of_zero_and_no_unbiased_one():
    moments = Moments.of(torch.tensor([[3.0]]))
    assert moments.variance.item() == 0
    with pytest.raises(ValueError, match=r"at least 2 values per channel, and count is 1: pool"):
        moments.unbiased_variance  # noqa: B018  the property is what raises


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(3), r"`values` of shape \(3,\) has no axis 1 .* at least 2 dimensions"),
        (torch.zeros(0, 3), r"`values` of shape \(0, 3\) is empty"),
    ],
    ids=["no channel axis", "no values"],
)
def test_values_without_moments_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Moments.of(values)


def test_moments_of_different_channels_are_not_pooled():
    # Broadcasting would make three channels of them without a word.
    with pytest.raises(ValueError, match=r"moments of 1 and of 3 channels cannot be pooled"):
        Moments.of(torch.randn(4, 1)) + Moments.of(torch.randn(4, 3))


# Large arrays are read in tiles


def shuffled_axes(x):
    return x.movedim(0, -1).contiguous().movedim(-1, 0)


@pytest.mark.parametrize(
    ("shape", "arrange"),
    [
        ((5, 40, 60, 61), as_it_is),
        ((5, 40, 60, 61), channels_last),
        ((5, 40, 60, 61), shuffled_axes),
        ((5, 40, 60, 61), every_second_value),
        ((1, 3, 500, 501), as_it_is),
        ((30_011, 20), as_it_is),
        ((30_011, 20), shuffled_axes),
        ((9_001, 20, 3), as_it_is),
        ((3, 150_000), as_it_is),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_moments_of_large_arrays_are_exact_in_every_layout(shape, arrange, shift):
    x = arrange(torch.randn(shape, generator=seeded(0)) + shift)
    channels, moments = over_all_but_channels(x), Moments.of(x)
    assert moments.count == channels.shape[1]
    torch.testing.assert_close(moments.mean, channels.mean(1), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(
        moments.variance, channels.var(1, correction=0), rtol=1e-11, atol=1e-12
    )


def test_no_value_of_a_large_array_is_changed():
    x = torch.randn(3, 40, 60, 60, dtype=torch.float64)
    before = x.clone()
    Moments.of(x)
    assert torch.equal(x, before)
