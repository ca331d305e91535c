"""The chart of a benchmark keeps to the grammar, and shows each ratio at its place."""

import json
from xml.etree import ElementTree as ET

import altair as alt
import pytest

from benchmarking.fabricate import LARGE, SMALL, benchmark, measurement
from bnkit.report.benchmark_chart import COMPILED, EAGER, INFERENCE, chart, write_benchmark

BOTH = benchmark(
    measurement(LARGE, **{"torch.compile": 3.0}),
    measurement(SMALL, torch=0.9),
    measurement(LARGE, last=True),
)


def rows(drawn, panel):
    values = drawn["datasets"][panel["data"]["name"]]
    return [(row["mini-batch"], row["program"], row["ratio"]) for row in values]


def test_the_specification_is_valid():
    alt.Chart.from_dict(chart(BOTH))  # raises where the grammar is broken


def test_each_layout_has_a_panel_with_a_row_for_each_mini_batch():
    drawn = chart(BOTH)
    first, last = drawn["vconcat"]
    assert [panel["title"]["text"] for panel in (first, last)] == [
        "channels first",
        "channels last",
    ]
    assert rows(drawn, first) == [
        ("32×64×112×112", EAGER, 4.0),
        ("32×64×112×112", COMPILED, 3.0),
        ("32×64×112×112", INFERENCE, 3.0),
        ("60×100", EAGER, 0.9),
        ("60×100", INFERENCE, 3.0),
    ]
    assert rows(drawn, last) == [("32×64×112×112", EAGER, 4.0), ("32×64×112×112", INFERENCE, 3.0)]


def domain(panel):
    return next(
        layer["encoding"]["x"]["scale"]["domain"]
        for layer in panel["layer"]
        if "scale" in layer["encoding"]["x"]
    )


def test_all_panels_share_one_axis_that_holds_every_dot_and_equality():
    panels = chart(BOTH)["vconcat"]
    low, high = domain(panels[0])
    assert domain(panels[1]) == [low, high]
    assert low < 0.9
    assert high > 4


def test_the_title_says_the_mean_and_the_caption_what_is_drawn():
    title = chart(BOTH)["title"]
    assert "bnkit is 2.4 times as fast as torch eager" in title["text"]
    caption = " ".join(title["subtitle"])
    assert all(word in caption for word in ("torch.compile", "a processor", "threads: 2", "today"))
    assert "torch.compile" not in " ".join(chart(benchmark())["title"]["subtitle"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "benchmark"  # it does not exist yet
    assert write_benchmark(BOTH, folder) == folder / "benchmark.html"
    return folder


def test_figures_pictures_and_page_are_written(folder):
    kinds = ["html", "json", "png", "svg"]
    assert sorted(path.name for path in folder.iterdir()) == [f"benchmark.{kind}" for kind in kinds]
    assert (folder / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert ET.fromstring((folder / "benchmark.svg").read_bytes()).tag.endswith("svg")
    assert json.loads((folder / "benchmark.json").read_text()) == BOTH.to_json()


def test_the_page_needs_no_network(folder):
    page = (folder / "benchmark.html").read_text()
    assert "32×64×112×112" in page or "32\\u00d764" in page
    assert "cdn." not in page
    assert 'src="http' not in page
