import time

import pytest

from bnkit.progress import PATIENCE, counted, counting


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
def test_no_bar_is_shown_where_it_is_fast_or_not_asked_for(capsys, waited, shown):
    assert take(5, total=5, waited=waited, shown=shown) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err == ""


def test_the_bar_counts_on_stderr_from_what_was_done_before(capsys):
    with counting("trials", 5, done=2) as count:
        count("one")
        count("another")
    out, err = capsys.readouterr()
    assert out == ""
    assert "trials" in err
    assert "4/5" in err


def test_nothing_is_shown_where_nothing_is_wanted(capsys):
    with counting("trials", 5, shown=False) as count:
        count("one")
    assert capsys.readouterr() == ("", "")


def count_one_and_stop():
    with counting("trials", 5) as count:
        count("one")
        raise KeyboardInterrupt


def test_the_bar_ends_where_its_work_fails(capsys):
    with pytest.raises(KeyboardInterrupt):
        count_one_and_stop()
    assert "1/5" in capsys.readouterr().err


def test_a_note_stands_below_the_bar_and_leaves_it_its_room(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    note = f"batch norm, learning rate 0.1, seed 0: step 300, accuracy 91.2%{'.' * 40}"
    with counting("trials", 5) as count:
        count.say(note)
    lines = capsys.readouterr().err.splitlines()
    assert any("0/5" in line and "elapsed" in line and "batch norm" not in line for line in lines)
    assert any(line.endswith("…") and note[:79] in line for line in lines)
