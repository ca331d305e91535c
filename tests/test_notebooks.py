"""Results in notebooks: the same tables as HTML, which needs no script and no network."""

import re
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import bnkit
from benchmarking.fabricate import benchmark
from bnkit.notebooks import Shown, in_notebook
from bnkit.progress import counting
from bnkit.recalibration import plan_recalibration
from bnkit.surgery import plan_addition, plan_folding
from bnkit.tables import text_table
from report.fabricate import comparison

pandas = pytest.importorskip("pandas", reason="pandas is not installed")

EXAMPLE = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))


def watched():
    model = network()
    with bnkit.Monitor(model, every=1) as monitor:
        model(EXAMPLE).sum().backward()
    return monitor


RESULTS = {
    "plan": lambda: plan_folding(network().eval(), EXAMPLE),
    "plan without edits": lambda: plan_addition(nn.Sequential(nn.Linear(4, 2)), EXAMPLE),
    "diagnosis": lambda: bnkit.diagnose(network(), [EXAMPLE]),
    "nothing found": lambda: bnkit.Diagnosis("Net<4>", 0, ()),
    "gap": lambda: bnkit.explain_gap(network(), EXAMPLE),
    "recalibration": lambda: plan_recalibration(network(), [EXAMPLE]),
    "comparison": comparison,
    "monitor": watched,
    "benchmark": benchmark,
}


@pytest.fixture(params=RESULTS)
def result(request):
    return RESULTS[request.param]()


class Page(HTMLParser):
    """The words of a page, and its tags, which must all be closed in their order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.words, self.urls, self.rows = [], [], [], 0
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.rows += tag == "tr"
        self.urls += [value for name, value in attributes if name in ("src", "href")]
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] != "style":
            self.words += data.split()


def test_a_notebook_shows_every_word_that_is_printed(result):
    shown = Page(result._repr_html_())
    printed = re.sub("[─-╿]", " ", str(result)).split()
    assert sorted(shown.words) == sorted(printed)
    assert shown.urls == []
    assert "url(" not in result._repr_html_()


def test_a_terminal_prints_the_same_as_print(result):
    pretty = pytest.importorskip("IPython.lib.pretty", reason="IPython is not installed")
    assert pretty.pretty(result) == str(result)


def test_a_table_is_text_again_afterwards_also_after_an_error():
    class Failing(Shown):
        def __str__(self):
            text_table(["a"], [["b"]])
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        Failing()._repr_html_()
    assert "─" in text_table(["a"], [["b"]])


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        ("plan", 1, {"layer", "change", "why"}),
        ("diagnosis", None, {"rule", "severity", "layers", "fix"}),
        ("gap", 1, {"layer", "mean_shift", "own_difference"}),
        ("recalibration", 1, {"layer", "mean_shift"}),
        ("comparison", None, {"side", "seed", "outcome"}),
        ("monitor", 1, {"step", "layer", "lag", "input_50"}),
        ("benchmark", None, {"shape", "layout", "torch", "bnkit"}),
    ],
)
def test_a_frame_has_a_row_for_each_thing(name, rows, columns):
    frame = RESULTS[name]().to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) == rows if rows else len(frame) > 1
    assert columns <= set(frame.columns)


# Progress


class Kernel:
    """What IPython gives to code in a notebook; it keeps what is displayed."""

    def __init__(self, monkeypatch):
        self.shown = []
        display = SimpleNamespace(HTML=lambda text: text, display=self.display)
        shell = SimpleNamespace(kernel=object())
        module = SimpleNamespace(get_ipython=lambda: shell, display=display)
        monkeypatch.setitem(sys.modules, "IPython", module)
        monkeypatch.setitem(sys.modules, "IPython.display", display)

    def display(self, text, *, display_id):
        assert display_id
        self.shown.append(text)
        return SimpleNamespace(update=self.shown.append)


def test_a_notebook_shows_how_far_a_run_is(monkeypatch):
    kernel = Kernel(monkeypatch)
    with counting("trials & more", 3, done=1) as count:
        count("one")
    first, second, last = kernel.shown
    name = "trials &amp; more: 1 of 3"
    assert first == f'<progress aria-label="{name}" value="1" max="3"></progress> {name}'
    assert second == first.replace("1 of 3", "2 of 3").replace('value="1"', 'value="2"')
    assert last == ""


def test_a_bar_of_unknown_length_counts(monkeypatch):
    kernel = Kernel(monkeypatch)
    with counting("passes", None) as count:
        count("one")
    assert kernel.shown[1] == '<progress aria-label="passes: 1"></progress> passes: 1'


def test_a_program_is_not_a_notebook():
    assert not in_notebook()
