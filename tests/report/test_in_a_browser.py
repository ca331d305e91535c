"""Pages in a headless browser, where one is installed: no errors, nothing cut, charts visible."""

import json
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from bnkit.diagnosis import Diagnosis
from bnkit.report.comparison_page import charts, page
from bnkit.report.diagnosis_page import page as diagnosis_page
from report.fabricate import comparison, in_both_modes, interrupted, three_sides
from report.test_comparison_page import RECIPE
from report.test_diagnosis_page import LAYERS, finding

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-quic --hide-scrollbars "
    "--enable-logging=stderr --virtual-time-budget=2000 --dump-dom"
).split()
# What the page looks like, as text in its title; the page is in a frame as wide as a screen.
PROBE = """<!doctype html><iframe style="border:0;width:%dpx;height:900px"></iframe><script>
const frame = document.querySelector("iframe");
frame.onload = () => {
  const shown = frame.contentDocument;
  const sizes = [...shown.querySelectorAll(".panel")].map((panel) => {
    const drawn = panel.querySelector("svg").getBoundingClientRect();
    return [panel.id, drawn.width, drawn.height, panel.checkVisibility(), !!panel.closest(".fold")];
  });
  document.title = JSON.stringify({
    width: frame.contentWindow.innerWidth,
    scrolled: shown.documentElement.scrollWidth,
    sizes,
    open: [...shown.querySelectorAll(".fold")].map((fold) => fold.open),
    paper: frame.contentWindow.getComputedStyle(shown.documentElement).backgroundColor,
  });
};
frame.srcdoc = %s;
</script>"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no headless browser is installed")


def pages():
    found = replace(comparison(change=interrupted), recipe=RECIPE)
    yield "comparison", page(found, charts(found))
    small = replace(comparison((0.1,), ("as built",), 1, change=in_both_modes), recipe=RECIPE)
    yield "one setting", page(small, charts(small))
    three = three_sides(comparison((0.1, 1.0), ("relu",)))
    yield "three sides", page(three, charts(three))
    findings = [finding(layers=(f"a.long.path.of.a.layer.bn{n}",)) for n in range(9)]
    yield "diagnosis", diagnosis_page(Diagnosis("Net", 3, tuple(findings), layers=LAYERS))


PAGES = dict(pages()) if BROWSER else {}


@pytest.fixture
def opened(tmp_path):
    def look(html, width, *, dark=False):
        probe = tmp_path / "probe.html"
        probe.write_text(PROBE % (width, json.dumps(html).replace("</", "<\\/")))
        command = [BROWSER, *OPTIONS, f"--user-data-dir={tmp_path / 'profile'}",
                   f"--blink-settings=preferredColorScheme={0 if dark else 1}",
                   "--window-size=1400,1000", probe.as_uri()]  # fmt: skip
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        assert "CONSOLE" not in shown.stderr
        return json.loads(re.search("<title>(.*?)</title>", shown.stdout)[1])

    return look


@pytest.mark.parametrize("width", [390, 768, 1280])
@pytest.mark.parametrize("name", ["comparison", "one setting", "three sides", "diagnosis"])
def test_nothing_scrolls_sideways_and_every_chart_is_visible(opened, name, width):
    found = opened(PAGES[name], width)
    assert found["width"] == width
    assert found["scrolled"] <= width
    assert found["sizes"]
    folded = width < 576
    for _, wide, high, visible, foldable in found["sizes"]:
        if folded and foldable:
            assert not visible
        else:
            assert visible
            assert 150 < wide <= width
            assert high > 40
    assert set(found["open"]) <= {not folded}


def test_an_error_on_a_page_would_be_noticed(opened):
    with pytest.raises(AssertionError, match="nothing is not defined"):
        opened("<script>nothing()</script>", 390)


def test_without_a_script_everything_is_open_and_drawn(opened):
    html = PAGES["comparison"].partition("<script")[0] + "</body></html>"
    found = opened(html, 390)
    assert all(found["open"])
    assert all(high > 40 and visible for _, _, high, visible, _ in found["sizes"])
    assert found["scrolled"] <= 390


def test_the_page_is_dark_where_that_is_preferred(opened):
    assert opened(PAGES["one setting"], 390)["paper"] == "rgb(255, 255, 255)"
    assert opened(PAGES["one setting"], 390, dark=True)["paper"] == "rgb(20, 23, 26)"
