"""The page of a diagnosis says what was found, loads nothing, and lets no string break out."""

import math
import re
from pathlib import Path

import pytest

import bnkit.report
from bnkit.diagnosis import Diagnosis, Finding
from bnkit.diagnosis.layer_records import LayerRecord, Spread
from bnkit.report.diagnosis_page import page, write_diagnosis
from report.fabricate import NASTY
from report.test_comparison_page import Reader

SOURCES = Path(bnkit.report.__file__).parent


def finding(rule="stale-statistics", severity="warning", layers=("bn",), **options):
    given = {"measured": {"output change": 0.5}, "why": "They are old.", "fix": "Measure them."}
    return Finding(rule, severity, layers, **{**given, **options})


def layer(path, **options):
    spread = Spread(-1.0, -0.5, 0.1, 0.6, 2.0)
    given = {"channels": 8, "mean_shift": spread, "gamma": spread, "dead": 0, "collapsed": 0,
             "variance_ratio": Spread(0.5, 0.8, 1.0, 1.2, 3.0), "own_difference": 0.05,
             "difference": 0.06, "tolerance": 0.1}  # fmt: skip
    return LayerRecord(path, "BatchNorm2d", **{**given, **options})


LAYERS = (layer("stem.bn"), layer("deep.bn", own_difference=0.4, dead=2), layer("last.bn"))


def read(*findings, layers=(), **options):
    return Reader(page(Diagnosis("Net", len(layers), findings, layers=layers, **options)))


def charts(found):
    return {a["id"]: a["aria-label"] for _, a in found.tags if a.get("role") == "img"}


def test_a_finding_is_shown_with_what_was_measured_why_and_what_to_do():
    text = read(finding(), finding(severity="error", automatic_fix=lambda model: model)).text
    assert "1 error, 1 warning" in text
    for words in ("stale-statistics", "bn", "output change 0.5", "They are old.", "Measure them."):
        assert words in text
    assert text.count("finding.automatic_fix(model) does it.") == 1


def test_what_follows_stands_below_its_cause_and_the_worst_comes_first():
    cause = finding("never-updated", layers=("a",), why="Cause.")
    consequence = finding("train-eval-gap", "error", ("a",), causes=(cause,), why="Consequence.")
    text = read(finding("on-logits", why="Other."), cause, consequence).text
    cause, follows, consequence, other = map(
        text.index, ("Cause.", "What follows", "Consequence.", "Other.")
    )
    assert cause < follows < consequence < other


def test_the_same_trouble_in_many_layers_is_one_card_with_a_table():
    text = read(*(finding(layers=(f"bn{number}",)) for number in range(12))).text
    assert text.count("They are old.") == 1
    assert "12 times, first at bn0" in text
    assert "bn11 0.5" in text


def test_a_finding_of_many_layers_names_the_first_and_keeps_the_others():
    text = read(finding(layers=tuple(f"bn{number}" for number in range(20)))).text
    assert "20 layers, first bn0" in text
    assert "bn19" in text


def test_a_rule_is_explained_once_and_linked_to_from_others():
    found = read(finding(), finding(severity="error"))
    assert [a["id"] for _, a in found.tags if a.get("id", "").startswith("about")] == [
        "about-stale-statistics"
    ]
    assert "#about-stale-statistics" in found.all("a", "href")
    assert "How it is measured." in found.text
    assert "**" not in found.text


def test_nothing_is_loaded_from_anywhere():
    found = read(finding(), layers=LAYERS)
    assert [tag for tag, _ in found.tags if tag in ("iframe", "object", "img")] == []
    assert all(link.startswith("data:") for link in found.all("link", "href"))
    assert [a for _, a in found.tags if "src" in a] == []
    assert not re.search(r"url\(|@import|https?:", (SOURCES / "diagnosis.css").read_text())


def test_no_string_of_a_user_becomes_markup():
    sick = finding(layers=(NASTY,), measured={NASTY: NASTY}, why=NASTY, fix=NASTY)
    found = read(sick, layers=(layer(NASTY, own_difference=2.0),), not_run=(NASTY,))
    assert found.all("img", "src") == []
    assert found.text.count(NASTY) >= 6
    assert NASTY in charts(found)["gap"]
    assert "onerror" not in {name for _, attrs in found.tags for name in attrs}


def test_every_chart_is_drawn_without_a_script_and_has_its_words():
    found = read(layers=LAYERS)
    assert list(charts(found)) == ["gap", "means", "variances", "gammas", "dead"]
    assert all(charts(found).values())
    assert found.html.partition("<script")[0].count("<svg") == 5


def test_the_first_layer_that_makes_the_modes_diverge_is_the_title():
    assert "They first diverge at “deep.bn”" in read(layers=LAYERS).text
    assert "No layer makes them diverge by more than chance" in read(layers=LAYERS[::2]).text


def test_every_layer_has_its_line_in_the_table():
    text = read(layers=LAYERS).text
    for name in ("stem.bn", "deep.bn", "last.bn"):
        assert f"{name} BatchNorm2d 8 −0.5 · 0.1 · 0.6 0.8 · 1 · 1.2" in text


def test_a_model_that_was_not_run_has_the_charts_and_columns_that_can_be_known():
    bare = LayerRecord("bn", "BatchNorm1d", 4, gamma=Spread(1.0, 1.0, 1.0, 1.0, 1.0), dead=0)
    found = read(layers=(bare,), not_run=("the model fails on it",))
    assert "the model fails on it" in found.text
    assert list(charts(found)) == ["gammas"]
    assert "variance ratio" not in found.text
    assert "No channel is dead: no γ is near 0." in found.text


def test_a_model_without_batch_norms_has_a_page():
    found = read(layers=())
    assert "No batch norm in Net" in found.text
    assert "<svg" not in found.html


@pytest.mark.parametrize("number", [math.inf, math.nan, -math.inf])
def test_infinite_and_nan_values_are_written(number):
    found = read(finding(measured={"shift": number}))
    assert str(number).replace("-", "−") in found.text


def test_the_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = write_diagnosis(Diagnosis("Net", 0, ()), tmp_path / "deep" / "net.html")
    before = path.read_text()
    assert before.startswith("<!doctype html>")
    monkeypatch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_diagnosis(Diagnosis("Other", 0, ()), path)
    assert path.read_text() == before
    assert [each.name for each in path.parent.iterdir()] == ["net.html"]


@pytest.mark.parametrize("name", ["report", "report.txt"])
def test_a_path_that_is_not_a_page_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"give the name of a file that ends in .html"):
        write_diagnosis(Diagnosis("Net", 0, ()), tmp_path / name)


def test_no_warnings_never_stand_over_modes_that_differ():
    gap = finding("train-eval-gap", "info", measured={"output difference": 0.69})
    assert "No errors, no warnings, but the two modes differ by 69%" in read(gap).text
    assert "differ by" not in read(gap, finding()).text


def test_a_network_without_batch_norm_is_told_what_adds_it():
    text = read().text
    assert "No batch norm in Net" in text
    assert "bnkit.add(model, example)" in text


def test_the_page_says_how_it_was_made_and_lists_the_findings():
    diagnosis = Diagnosis("Net", 2, (finding(), finding("on-logits", layers=("fc",))))
    found = Reader(page(diagnosis, {"command": "bnkit doctor net:build", "data": "net:loaders"}))
    for words in ("bnkit doctor net:build", "net:loaders", "date", "torch"):
        assert words in found.text
    links = {a["href"] for tag, a in found.tags if tag == "a"}
    names = {f"#{a['id']}" for tag, a in found.tags if tag == "article"}
    assert names == {"#stale-statistics-bn", "#on-logits-fc"}
    assert names <= links
