"""The chart engine draws in a process of its own, whose death is one sentence and no other harm."""

import os
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
import vl_convert

from bnkit import write_report
from bnkit.report import chart_engine
from bnkit.report.chart_engine import png_of, svg_of, written_whole
from report.fabricate import comparison

CHART = {"data": {"values": [{"x": 1}]}, "mark": "point", "encoding": {"x": {"field": "x"}}}


@pytest.fixture
def engine(monkeypatch):
    """An engine that no other test draws with."""
    engine = chart_engine._Engine(os.getpid())
    monkeypatch.setattr(chart_engine, "_engine", lambda _: engine)
    yield engine
    engine.end()


def test_drawings_are_those_of_the_engine_in_this_process():
    assert svg_of(CHART) == vl_convert.vegalite_to_svg(CHART, vl_version=chart_engine.VEGA_LITE)
    assert png_of(svg_of(CHART), scale=2) == vl_convert.svg_to_png(svg_of(CHART), scale=2)


def test_many_drawings_are_made_by_one_process_which_needs_no_torch(engine):
    svg_of(CHART)
    process = engine._process
    mapped = Path(f"/proc/{process.pid}/maps")
    if mapped.exists():
        assert "libtorch" not in mapped.read_text()
    svg_of(CHART)
    assert engine._process is process


def test_what_cannot_be_drawn_is_an_error_of_its_own_and_the_engine_goes_on(engine):
    svg_of(CHART)
    process = engine._process
    with pytest.raises(ValueError, match="a chart cannot be drawn: "):
        svg_of({**CHART, "mark": "no such mark"})
    assert engine._process is process
    assert "<svg" in svg_of(CHART)


@pytest.mark.skipif(os.name != "posix", reason="signals end no process of Windows")
def test_after_its_death_the_next_drawing_has_another_process(engine):
    svg_of(CHART)
    engine._process.send_signal(signal.SIGKILL)
    engine._process.wait()
    with pytest.raises(ChildProcessError, match=r"draws the charts died of SIGKILL: memory is sho"):
        svg_of(CHART)
    assert "<svg" in svg_of(CHART)


@pytest.mark.usefixtures("engine")
def test_an_answer_that_ctrl_c_left_unread_is_not_the_next_ones(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    svg_of(CHART)
    with monkeypatch.context() as patch:
        patch.setattr(chart_engine.pickle, "load", interrupted)
        with pytest.raises(KeyboardInterrupt):
            svg_of({**CHART, "title": "interrupted"})
    assert "interrupted" not in svg_of(CHART)


@pytest.mark.usefixtures("engine")
def test_a_process_that_cannot_be_started_is_told(monkeypatch):
    def refuse(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(ChildProcessError, match=r"cannot start \(Cannot allocate memory\): memory"):
        svg_of(CHART)


def test_the_engine_of_a_process_outlives_the_end_of_one_that_was_forked(engine):
    svg_of(CHART)
    engine._owner += 1  # as it is in the forked one
    engine.end()
    assert engine._process.poll() is None
    engine._owner -= 1


@contextmanager
def limited(more):
    """Let this process, and those that it starts, have only so many bytes more of addresses."""
    import resource  # noqa: PLC0415  Windows has none

    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="it needs Linux' limits")
@pytest.mark.usefixtures("engine")
def test_under_a_limit_of_memory_a_report_is_one_sentence_and_the_old_one_stays(tmp_path):
    (tmp_path / "report.html").write_text("old")
    found = comparison((0.1,), ("relu",), 1)
    with limited(10**9), pytest.raises(ChildProcessError) as refused:
        write_report(found, tmp_path)
    assert str(refused.value).startswith(f"{tmp_path}/report.html is not written: the process that")
    assert "memory is short, or limited by `ulimit -v`" in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "old"
    write_report(found, tmp_path)
    assert (tmp_path / "report.html").read_text() != "old"


def test_memory_that_is_short_here_is_told_alike():
    with (
        pytest.raises(ChildProcessError, match=r"out/report\.html is not written: memory is short"),
        written_whole(Path("out/report.html")),
    ):
        raise MemoryError
