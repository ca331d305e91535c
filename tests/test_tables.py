import builtins

import pytest

from bnkit.tables import text_table


def test_columns_are_as_wide_as_they_must_be():
    assert text_table(["layer", "features"], [["fc1", 100], ["fc2", 9]]).splitlines() == [
        " layer   features",
        "──────────────────",
        " fc1     100",
        " fc2     9",
    ]


def test_a_table_without_rows_has_its_header():
    assert text_table(["a", "b"], []).splitlines()[0] == " a   b"


def test_long_texts_are_wrapped_between_words():
    lines = text_table(["layer", "why"], [["fc", "word " * 30]], width=40).splitlines()
    assert max(map(len, lines)) <= 40
    assert sum(line.count("word") for line in lines) == 30


def test_names_are_never_cut():
    name, other = "features.denseblock4.denselayer16.conv2" * 3, "NonDynamicallyQuantizableLinear"
    text = text_table(["layer", "kind", "why"], [[name, other, "because of this " * 9]], width=60)
    assert name in text
    assert other in text
    assert "…" not in text


def test_cells_are_text_and_no_markup():
    text = text_table(["[bold]x[/bold]"], [["[red]y"], [None], [1.5], [""]])
    assert [line.strip() for line in text.splitlines()] == [
        "[bold]x[/bold]", "─" * 16, "[red]y", "None", "1.5"
    ]  # fmt: skip


def test_a_table_is_the_same_in_every_terminal(monkeypatch):
    rows = [["fc1", "why " * 20]]
    expected = text_table(["layer", "why"], rows)
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert text_table(["layer", "why"], rows) == expected


def test_a_notebook_gets_the_text_too(monkeypatch):
    class ZMQInteractiveShell:
        """What rich takes for a notebook, in which it would print nothing into our text."""

    monkeypatch.setattr(builtins, "get_ipython", ZMQInteractiveShell, raising=False)
    assert "fc1" in text_table(["layer"], [["fc1"]])


def test_rows_of_another_length_are_refused():
    with pytest.raises(ValueError, match="zip"):
        text_table(["a", "b"], [["x"]])
