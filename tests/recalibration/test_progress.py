import time

import pytest

from bnkit.recalibration.progress import PATIENCE, counted


def take(count, *, total, waited, shown=True):
    begun = time.monotonic() - waited
    return list(counted(range(count), "measuring", total=total, begun=begun, shown=shown))


@pytest.mark.parametrize("total", [5, None], ids=["known", "unknown"])
def test_a_bar_counts_what_takes_long(capsys, total):
    assert take(5, total=total, waited=PATIENCE + 1) == [0, 1, 2, 3, 4]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "measuring" in captured.err
    assert f"/{total or '?'}" in captured.err


@pytest.mark.parametrize(("waited", "shown"), [(0, True), (PATIENCE + 1, False)])
def test_no_bar_is_shown_where_it_goes_fast_or_nobody_asks(capsys, waited, shown):
    assert take(5, total=5, waited=waited, shown=shown) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err == ""
