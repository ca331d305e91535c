"""Scales are invertible, their ticks few and round, and labels on them do not overlap."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnkit.report.scales import CLEAR, LINE, Scale, around_one, around_zero, powers

ACCURACY = Scale(0, 100, (0, 50, 100))
SCALES = [ACCURACY, Scale(1e-3, 10, (0.001, 0.1, 10), "log"), Scale(-3, 50, (), "symlog", 0.1)]


@pytest.mark.parametrize("scale", SCALES, ids=lambda scale: scale.type)
@given(height=st.floats(0, 1))
def test_height_and_value_are_inverse(scale, height):
    assert scale.height(scale.value(height)) == pytest.approx(height, abs=1e-9)


@pytest.mark.parametrize("scale", SCALES, ids=lambda scale: scale.type)
@given(st.data())
def test_two_labels_stand_apart_in_their_order_and_inside(scale, data):
    values = [scale.value(data.draw(st.floats(0, 1))) for _ in range(2)]
    first, second = (scale.height(value) for value in scale.apart(values))
    assert abs(first - second) >= LINE - 1e-9
    assert min(first, second) >= -1e-9
    assert max(first, second) <= 1 + 1e-9
    if abs(scale.height(values[0]) - scale.height(values[1])) > 1e-9:
        assert (first > second) == (values[0] > values[1])


def test_labels_that_are_far_apart_stay_where_they_are():
    assert ACCURACY.apart([20, 80]) == [20, 80]
    assert ACCURACY.apart([99]) == [99]
    assert ACCURACY.apart([]) == []


@given(st.floats(1e-8, 1e8), st.floats(1.01, 1e8), st.integers(2, 6))
def test_ticks_lie_inside_ascending_and_few(low, ratio, most):
    ticks = powers(low, low * ratio, most=most)
    assert len(ticks) <= most
    assert all(low <= tick <= low * ratio for tick in ticks)
    assert list(ticks) == sorted(set(ticks))


@pytest.mark.parametrize(
    "scale",
    [
        around_zero([0.0], 0.1, least=0.2),
        around_zero([-300.0, 2.0], 1.0, least=1.0),
        around_zero([1e6], 0.1, least=0.2),
        around_one([1e-7, 1e9]),
        around_one([1.0]),
    ],
    ids=str,
)
def test_ticks_are_few_inside_and_apart(scale):
    heights = [scale.height(tick) for tick in scale.ticks]
    assert 2 <= len(heights) <= 7
    assert 0 <= heights[0] <= heights[-1] <= 1
    assert all(b - a >= CLEAR - 1e-9 for a, b in pairwise(heights))
