"""The page says what was found, hides nothing, loads nothing, and lets no string break out.

A report that cannot be drawn leaves the old one as it was.
"""

import json
import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

import bnkit.report
from bnkit import write_report
from bnkit.experiments.metrics import Metric
from bnkit.experiments.summary import Comparison, Recipe
from bnkit.report import charts
from bnkit.report.comparison_numbers import key_numbers
from bnkit.report.comparison_page import charts as charts_of
from bnkit.report.comparison_page import page
from bnkit.report.formatting import NOTHING
from report.fabricate import (
    NASTY,
    comparison,
    in_both_modes,
    interrupted,
    never_finite,
    never_run,
    only_plain,
    without_result,
)

SOURCES = Path(bnkit.report.__file__).parent


class Reader(HTMLParser):
    """Tags with their attributes, and the text that people see."""

    def __init__(self, html):
        super().__init__()
        self.html, self.tags, self.words, self.inside = html, [], [], ("", {})
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.inside = (tag, dict(attrs))
        self.tags.append(self.inside)

    def handle_endtag(self, tag):  # noqa: ARG002  the parser's own signature
        self.inside = ("", {})

    def handle_data(self, data):
        if self.inside[0] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag, attribute):
        return [attrs[attribute] for name, attrs in self.tags if name == tag and attribute in attrs]


@cache
def read(found=None, **options):
    found = comparison(options.pop("rates", (0.1, 3.0)), ("relu",), 3, **options)
    return Reader(page(found, charts_of(found)))


def fails_nastily(trial):
    failed = without_result(trial, "failed", f"ValueError: {NASTY}")
    return failed if trial.seed == 1 else replace(trial, activation=NASTY)


def test_the_answer_and_every_sentence_of_the_verdict_are_shown():
    text = read().text
    verdict = comparison((0.1, 3.0), ("relu",), 3).verdict
    assert all(" ".join(sentence.split()) in text for sentence in verdict.sentences)
    assert "".join(read().all("html", "lang")) == "en"


def test_nothing_is_loaded_from_anywhere():
    found = read()
    loading = [(tag, name) for tag, attrs in found.tags for name in attrs
               if name in ("src", "srcset", "data", "poster", "action")]  # fmt: skip
    assert loading == []
    assert [tag for tag, _ in found.tags if tag in ("iframe", "object", "img", "image")] == []
    assert all(link.startswith("data:image/svg") for link in found.all("link", "href"))
    assert all(not link.startswith("http") for _, attrs in found.tags for link in attrs.values()
               if link and link != "http://www.w3.org/1999/xlink")  # fmt: skip


def test_every_link_leads_to_a_place_on_the_page_so_that_it_can_be_mailed():
    assert all(link.startswith("#") for link in read(change=interrupted).all("a", "href"))


def test_style_and_script_of_our_own_load_nothing_either():
    style, script = ((SOURCES / f"report.{kind}").read_text() for kind in ("css", "js"))
    assert not re.search(r"url\(|@import|https?:", style)
    assert not re.search(r"fetch|import|XMLHttp|https?:", script)


def test_every_chart_is_drawn_without_a_script_and_has_its_words():
    found = read()
    panels = [panel for chart in charts_of(comparison((0.1, 3.0), ("relu",), 3))
              for panel in chart.panels]  # fmt: skip
    places = {a["id"]: a["aria-label"] for _, a in found.tags if a.get("role") == "img"}
    assert places == {panel.name: panel.description for panel in panels}
    assert [tag for tag, _ in found.tags].count("svg") == len(panels) == 5
    without_scripts = found.html.partition("<script")[0]
    assert all(panel.svg in without_scripts for panel in panels)


def test_the_only_script_is_short_and_only_folds():
    (script,) = re.findall("<script.*?</script>", read().html, re.DOTALL)
    assert len(script) < 600
    assert [a.get("class") for tag, a in read().tags if tag == "details" and "open" in a] == [
        "fold", "fold"
    ]  # fmt: skip


def test_the_page_says_in_its_head_what_it_shows():
    found = read()
    (words,) = [a["content"] for tag, a in found.tags if tag == "meta" and
                a.get("name") == "description"]  # fmt: skip
    assert words.startswith(
        "Batch norm helps this network. Reliability: not shown. 6 of 6 runs train with "
    )


RECIPE = Recipe(
    network="Sequential(\n  (0): Linear(in_features=64, out_features=10, bias=True)\n)",
    activation="relu",
    plan=(
        ("0", "Linear", "normalise 100 features, drop bias", "'1' (ReLU) follows"),
        ("2", "Linear", "left alone", "output layer: its result leaves the model"),
    ),
    code="import bnkit\n\nmodel = bnkit.add(model, example, momentum=0.1)",
)


def test_the_plan_the_code_to_apply_it_and_the_network_are_shown():
    found = replace(comparison((0.1,), ("relu",), 1), recipe=RECIPE)
    reader = Reader(page(found, charts_of(found)))
    assert "model = bnkit.add(model, example, momentum=0.1)" in reader.text
    assert "0 Linear normalise 100 features, drop bias '1' (ReLU) follows" in reader.text
    assert "2 Linear left alone output layer" in reader.text
    assert "(0): Linear(in_features=64, out_features=10, bias=True)" in reader.text


def test_a_network_with_its_own_batch_norm_has_no_plan_and_older_results_no_section():
    found = replace(comparison((0.1,), ("relu",), 1), recipe=replace(RECIPE, plan=(), code=""))
    text = Reader(page(found, charts_of(found))).text
    assert "This network brings its own batch norm" in text
    assert "Where batch norm goes" not in read().text


@pytest.mark.parametrize(
    ("settings", "unseen"),
    [
        ({"network": "mlp", "data": "digits"}, ""),
        ({"network": "a:build", "data": "a:loaders"}, "what data gives after its first epoch, and"),
        ({"network": "a:build", "train": "a:train"}, "data and files that train reads itself, an"),
        ({"network": "a:build", "train": "a:t", "data": "a:d"}, "changes: files that train reads"),
    ],
)
def test_the_page_says_what_the_key_of_a_result_does_not_cover(settings, unseen):
    small = comparison((0.1,), ("as built",), 1)
    without, found = (
        replace(small, settings=each) for each in (settings, {**settings, "version": "v7"})
    )
    html = page(found, charts_of(found))
    assert unseen in html
    assert unseen in page(without, charts_of(without))
    assert ("It is not seen if something else changes" in html) == bool(unseen)
    assert ("that of these results is “v7”" in html) == bool(unseen)


def test_code_of_ones_own_without_a_version_has_a_page():
    settings = {"network": "my.code:build", "data": "my.code:data"}
    found = replace(comparison((0.1,), ("as built",), 1), settings=settings)
    html = page(found, charts_of(found))
    assert "Another <code>version</code> then runs all anew." in html


def test_ids_are_unique_and_every_link_within_the_page_leads_somewhere():
    found = read(change=interrupted)
    names = [attrs["id"] for _, attrs in found.tags if "id" in attrs]
    assert len(set(names)) == len(names)
    assert {link[1:] for link in found.all("a", "href") if link.startswith("#")} <= set(names)


def test_runs_that_are_missing_are_stated_with_their_reasons_before_any_number():
    text = read(change=interrupted).text
    assert "6 of 12 runs are missing" in text
    assert "4 not run : interrupted before it started" in text
    assert "2 failed : RuntimeError: the worker ran out of memory" in text
    assert "plain, relu, learning rate 3, seed 1" in text
    assert text.index("are missing") < text.index("Runs that train")
    assert "missing" not in read().text


def test_a_metric_of_which_less_is_better_is_written_in_its_own_unit():
    error = Metric("mse", higher_is_better=False)
    found = replace(comparison([0.1], ["relu"], 3), metric=error, target=0.05)
    text = Reader(page(found, charts_of(found))).text
    assert "trains: ends finite, at 0.05 held-out mse or below" in text
    assert "Test mse" in text
    assert "Final mse and success rates" in text
    assert "accuracy" not in text


def test_no_string_of_a_user_becomes_markup():
    found = read(change=fails_nastily)
    assert found.all("img", "src") == []
    assert found.text.count(f"ValueError: {NASTY}") == 1
    assert NASTY in found.text.split("Held-out accuracy while training")[1]
    assert "alert(1)" not in "".join(re.findall("<script.*?</script>", found.html, re.DOTALL))
    assert "onerror" not in {name for _, attrs in found.tags for name in attrs}


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        pytest.param(never_run, "There are no finished pairs", id="nothing ran"),
        pytest.param(only_plain, "There are no finished pairs", id="one side only"),
        pytest.param(
            never_finite, "Not shown: whether batch norm helps", id="no finite loss at all"
        ),
    ],
)
def test_a_comparison_that_shows_nothing_still_has_its_page(change, answer):
    assert answer in read(change=change).text


def test_both_modes_are_shown_where_they_were_measured_and_only_there():
    assert "batch statistics" in read(change=in_both_modes).text
    assert "batch statistics" not in read().text


@pytest.mark.parametrize("activation", ["", "as built"])
def test_activations_that_were_not_chosen_are_not_named(activation):
    found = comparison((0.1,), (activation,), 1)
    text = Reader(page(found, charts_of(found))).text
    assert "activation" not in text.split("Settings")[0]
    assert "as built" not in text


def test_diverged_runs_are_counted_at_the_top_and_in_the_table():
    text = read().text
    assert "3 runs diverged and count among those that do not train" in text
    assert "0/3 train 3 diverged" in text


def test_what_lies_beside_the_verdict_is_told_at_the_top():
    def longer(trial):
        return replace(trial, steps=2300) if trial.side == "batch norm" else trial

    found = comparison((0.1,), ("relu",), 3, change=longer)
    (note,) = found.notes
    assert note.startswith("3 of 3 pairs of runs end at other steps, plain at 2,000 and batch norm")
    assert note in Reader(page(found, charts_of(found))).text.partition("Runs that train")[0]
    assert "caution" not in "".join(read().all("p", "class"))


def test_terms_are_defined_where_they_are_used():
    assert {"trains", "Steps to the target", "Paired ratio"} <= set(read().words)


SMALL = comparison([0.1, 3.0], ["relu"], 2)
CHARTS = [f"charts/{name}.{kind}" for name in ("metric", "loss", "steps")
          for kind in ("png", "svg")]  # fmt: skip


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "report"  # it does not exist yet
    assert write_report(SMALL, folder) == folder / "report.html"
    return folder


def test_the_files_are_those_that_the_docstring_names_and_no_other(folder):
    files = ["report.html", "results.json", "summary.png", *CHARTS]
    assert sorted(contents(folder)) == sorted(files)


def test_pictures_are_pictures(folder):
    for name in ("summary.png", *CHARTS):
        data = (folder / name).read_bytes()
        if name.endswith("png"):
            assert data.startswith(b"\x89PNG")
        else:
            assert ET.fromstring(data).tag == "{http://www.w3.org/2000/svg}svg"


def test_a_drawing_holds_its_titles_and_both_sides(folder):
    text = (folder / "charts/metric.svg").read_text()
    assert all(word in text for word in ("learning rate 3", "plain 1", "BN 9", "training step"))


def test_the_results_are_strict_json_and_come_back_equal(folder):
    def refuse(constant):
        raise AssertionError(constant)

    document = json.loads((folder / "results.json").read_text(), parse_constant=refuse)
    assert Comparison.from_json(document).trials == SMALL.trials


def test_the_page_is_small_enough_to_send(folder):
    assert (folder / "report.html").stat().st_size < 80e3
    found = comparison()  # the settings of the default run
    assert len(page(found, charts_of(found)).encode()) < 220e3


def test_a_chart_that_cannot_be_drawn_leaves_the_old_report_as_it_was(folder, monkeypatch):
    before = contents(folder)
    drawn = []

    def breaks_on_the_last(specification):
        drawn.append(specification)
        if len(drawn) == 3:
            raise RuntimeError("the exporter broke")
        return {".svg": b"new", ".png": b"new"}

    monkeypatch.setattr(charts, "export", breaks_on_the_last)
    with pytest.raises(RuntimeError, match="the exporter broke"):
        write_report(SMALL, folder)
    assert contents(folder) == before


def test_a_comparison_without_trials_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`comparison` holds no trials.*: run some"):
        write_report(replace(SMALL, trials=()), tmp_path)
    assert contents(tmp_path) == {}


def test_the_page_says_that_machines_were_unlike_and_shows_no_times_across_them():
    def elsewhere(trial):
        host = "other" if trial.seed else "one"
        kind = {"processor": f"CPU of {host}", "threads": "1", "torch": "2.13.0"}
        return replace(trial, machine={"host": host, **kind})

    found = comparison((0.1, 3.0), ("relu",), 3, change=elsewhere)
    html = page(found, charts_of(found))
    reader = Reader(html)
    assert reader.text.count("The runs are of 2 hosts (CPU of one, 1 threads, torch 2.13.0; ") == 2
    assert {value.values["plain"] for value in key_numbers(found)[-1:]} == {NOTHING}
    assert key_numbers(found)[-1].values["batch norm"] in reader.text
    assert key_numbers(found)[-1].values["batch norm"].endswith(" ×")
    alike = comparison((0.1, 3.0), ("relu",), 3)
    assert "The runs are of" not in read().text
    assert key_numbers(alike)[-1].values["plain"] != NOTHING
