"""Frames hold all that is worth seeing, and labels in them do not overlap."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnkit.report.curves import Curves, Spread
from bnkit.report.frames import LINE, Frame, accuracy_frame, loss_frame, powers

ACCURACY = Frame("held-out accuracy (%)", 0, 100, (0, 50, 100), ".1f", "%")
LOSS = Frame("training loss", 1e-3, 10, (0.001, 0.1, 10), ".2g", logarithmic=True)


def curve(*values):
    return Curves({"plain": tuple(Spread(n, v, v, v) for n, v in enumerate(values)),
                   "batch norm": ()}, ())  # fmt: skip


@pytest.mark.parametrize("frame", [ACCURACY, LOSS], ids=lambda frame: frame.label)
@given(height=st.floats(0, 1))
def test_height_and_value_are_inverse(frame, height):
    assert frame.height(frame.value(height)) == pytest.approx(height, abs=1e-9)


@pytest.mark.parametrize("frame", [ACCURACY, LOSS], ids=lambda frame: frame.label)
@given(st.data())
def test_two_labels_stand_apart_in_their_order_and_inside(frame, data):
    values = [frame.value(data.draw(st.floats(0, 1))) for _ in range(2)]
    first, second = (frame.height(value) for value in frame.apart(values))
    assert abs(first - second) >= LINE - 1e-9
    assert min(first, second) >= -1e-9
    assert max(first, second) <= 1 + 1e-9
    if abs(frame.height(values[0]) - frame.height(values[1])) > 1e-9:
        assert (first > second) == (values[0] > values[1])


def test_labels_that_are_far_apart_stay_where_they_are():
    assert ACCURACY.apart([20, 80]) == [20, 80]
    assert ACCURACY.apart([99]) == [99]
    assert ACCURACY.apart([]) == []


def test_accuracies_stand_on_a_scale_to_100_and_low_ones_on_a_smaller():
    assert accuracy_frame([curve(97)], 90).high == 100
    assert accuracy_frame([curve(12)], 15).high == 20
    assert accuracy_frame([], 0).high == 10


def test_a_loss_that_explodes_does_not_press_the_others_flat():
    frame = loss_frame([curve(2.3, 0.1), curve(2.3, 1e30)])
    assert frame.high < 100
    assert frame.inside(1e30) == frame.high


def test_a_loss_of_zero_or_nearly_stands_at_the_lower_edge():
    frame = loss_frame([curve(2.3, 0.0, 1e-30)])
    assert 0 < frame.low < 1e-5
    assert frame.inside(0.0) == frame.low


def test_without_any_loss_there_is_still_a_frame():
    frame = loss_frame([curve()])
    assert 0 < frame.low < frame.high


@given(st.floats(1e-8, 1e8), st.floats(1.01, 1e8), st.integers(2, 6))
def test_ticks_lie_inside_ascending_and_few(low, ratio, most):
    ticks = powers(low, low * ratio, most=most)
    assert len(ticks) <= most
    assert all(low <= tick <= low * ratio for tick in ticks)
    assert list(ticks) == sorted(set(ticks))
