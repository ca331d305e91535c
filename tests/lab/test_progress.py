import pytest

from bnkit.lab.progress import counting


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
