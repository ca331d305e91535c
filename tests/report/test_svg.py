"""Drawings are put into pages short, as text, with their words, and apart from each other."""

import re

import pytest

from bnkit.report.charts import READINGS, Panel, export, hover, layer
from bnkit.report.curve_charts import metric_chart
from bnkit.report.svg import inlined
from report.fabricate import NASTY, comparison

ROWS = [{"x": n, "y": n / 3, "reading": f"{NASTY} {n}"} for n in range(100)]


def drawn(name="some", **look):
    points = layer("point", ROWS[:3], look, x="x:Q", y="y:Q", description="reading:N")
    return Panel(name, "words", [points], title=NASTY, hover=hover("x", ROWS)).svg


@pytest.fixture(scope="module")
def svg():
    return metric_chart(comparison((0.1,), ("relu",), 3)).panels[0].svg


def test_words_are_text_and_colours_are_those_of_the_style_sheet(svg):
    assert ">learning rate 0.1</text>" in svg
    assert re.search(r">plain \d\d\.\d%</text>", svg)
    assert set(re.findall(r'(?:fill|stroke)="([^"]*)"', svg)) <= {
        "none", "var(--grid)", "var(--muted)", "var(--ink)", "var(--plain)", "var(--batch-norm)"
    }  # fmt: skip


def test_coordinates_are_rounded_to_a_tenth(svg):
    drawings = " ".join(re.findall(r' (?:d|transform|x2|y2)="([^"]*)"', svg))
    assert re.search(r"\d\.\d", drawings)
    assert not re.search(r"\.\d\d", drawings)


def test_a_drawing_is_a_third_shorter_than_the_engine_writes_it(svg):
    written = export(metric_chart(comparison((0.1,), ("relu",), 3)).panels[0].on_page)[".svg"]
    assert len(svg) < 2 / 3 * len(written)


def test_the_pointer_reads_both_sides_at_a_step_and_no_words_of_the_engine(svg):
    titles = re.findall("<title>(.*?)</title>", svg, re.DOTALL)
    assert 10 < len(titles) <= READINGS
    assert all(re.match(r"step [\d,]+\nplain .*%\)\nbatch norm .*%\)$", title) for title in titles)
    assert titles[-1].startswith("step 2,000")
    assert "aria-" not in svg


def test_readings_of_many_rows_are_thinned_and_the_last_is_among_them():
    titles = re.findall("<title>(.*?)</title>", drawn(), re.DOTALL)
    assert len(titles) == 3 + 20
    assert titles[-1].endswith(" 99")


def test_no_string_becomes_markup():
    assert "<img" not in drawn()
    assert "</script" not in drawn()
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;" in drawn()


def test_ids_of_two_drawings_differ_and_lead_to_their_own():
    one, other = drawn("one", clip=True), drawn("other", clip=True)
    ids = [re.findall(r' id="([^"]*)"', svg) for svg in (one, other)]
    assert len(ids[0]) == len(ids[1]) == 1
    assert ids[0] != ids[1]
    for svg, (name,) in zip((one, other), ids, strict=True):
        assert re.findall(r"url\(#([^)]*)\)", svg) == [name]


def test_a_drawing_is_as_wide_as_its_place_up_to_a_bound():
    plain = '<svg xmlns="http://www.w3.org/2000/svg" width="10"><g/><path d="M0,0h1"/></svg>'
    assert inlined(plain, "a", widest=14) == (
        '<svg width="10" style="max-width:14px"><path d="M0,0h1" /></svg>'
    )
