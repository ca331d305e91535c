"""The docs site: every public name is there, and a browser shows, searches and copies."""

import functools
import http.server
import importlib
import os
import re
import runpy
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
OPTIONS = (
    "--no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-quic"
).split()
DOCUMENTED = runpy.run_path(str(ROOT / "docs" / "building" / "docstrings.py"))
# What WCAG 2 asks at level AA, and the order of headings.
RULES = {
    "runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa"]},
    "rules": {name: {"enabled": True} for name in ("heading-order", "page-has-heading-one")},
}

pytest.importorskip("material", reason="the theme of the docs is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = ["mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    subprocess.run([sys.executable, "-m", *command], check=True, cwd=ROOT, env=environment)
    return folder


def anchors(page):
    return set(re.findall(r'id="([^"]+)"', page.read_text()))


@pytest.mark.parametrize("module", DOCUMENTED["MODULES"])
def test_every_public_name_has_its_place_in_the_reference(site, module):
    names = [DOCUMENTED["anchor_of"](module, name) for name in DOCUMENTED["public_names"](module)]
    assert names
    assert set(names) <= anchors(site / "reference" / module / "index.html")
    listed = (site / "reference" / "index.html").read_text()
    assert [name for name in names if f"#{name}" not in listed] == []


def test_all_that_bnkit_hands_on_is_in_the_reference():
    bnkit = importlib.import_module("bnkit")
    names = {name for of_module in DOCUMENTED["documented"]().values() for name in of_module}
    modules = {"functional", "layers"}
    missing = [n for n in bnkit.__all__ if f"bnkit.{n}" not in names and n not in modules]
    assert [name for name in missing if f"bnkit.layers.{name}" not in names] == []


def test_examples_are_code_and_sources_are_there(site):
    page = (site / "reference" / "bnkit.surgery" / "index.html").read_text()
    assert page.count("<blockquote") == 0
    assert page.count('class="language-pycon highlight"') > 10
    assert page.count("Source code in") > 10


def test_nothing_is_loaded_from_elsewhere(site):
    loaded = re.compile(r'<(?:script|img|iframe|link)[^>]* (?:src|href)="(https?:)?//', re.DOTALL)
    assert [page for page in site.rglob("*.html") if loaded.search(page.read_text())] == []


# In a browser


@pytest.fixture(scope="module")
def address(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def chromium():
    if BROWSER is None:
        pytest.skip("no headless browser is installed")
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, address):
    """Return what opens a page of a width and colour; errors on it are collected."""
    context = None

    def open_page(*, colour="light"):
        nonlocal context
        size = {"width": 1280, "height": 900}
        context = chromium.new_context(viewport=size, color_scheme=colour)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.troubles = []
        page.on("pageerror", lambda error: page.troubles.append(str(error)))
        page.on("console", lambda m: m.type == "error" and page.troubles.append(m.text))
        page.on(
            "request",
            lambda asked: (
                asked.url.startswith((address, "data:", "blob:")) or page.troubles.append(asked.url)
            ),
        )
        return page

    yield open_page
    if context is not None:
        context.close()


def test_no_page_has_errors_or_scrolls_sideways(opened, site, address):
    page, wide = opened(), {}
    for each in sorted(site.rglob("index.html")):
        name = each.parent.relative_to(site).as_posix()
        page.set_viewport_size({"width": 1280, "height": 900})
        page.goto(f"{address}{name}/", wait_until="load")
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 900})
            for colour in ("dark", "light"):
                page.emulate_media(color_scheme=colour)
                scrolled = page.evaluate("document.documentElement.scrollWidth")
                if scrolled > width:
                    wide[name, width, colour] = scrolled
    assert wide == {}
    assert page.troubles == []


@pytest.mark.parametrize("colour", ["light", "dark"])
@pytest.mark.parametrize("name", ["", "doctor", "tutorial", "reference/bnkit.functional"])
def test_contrast_headings_and_alternative_texts_hold_level_aa(opened, address, name, colour):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is missing")
    page = opened(colour=colour)
    page.goto(f"{address}{name}", wait_until="load")
    found = axe.Axe().run(page, options=RULES).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []


def test_search_finds_fold(opened, address):
    page = opened()
    page.goto(address, wait_until="load")
    page.keyboard.press("/")
    page.keyboard.type("fold")
    first = page.locator(".md-search-result__item").first
    first.wait_for(state="visible", timeout=20_000)
    assert "fold" in first.inner_text().lower()
    assert page.troubles == []


def test_code_copies(opened, address):
    page = opened()
    page.goto(address, wait_until="load")
    page.locator(".language-python button").first.click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("import torch\n")


def test_an_error_on_a_page_would_be_noticed(opened, address):
    page = opened()
    page.goto(address, wait_until="load")
    page.evaluate("setTimeout(() => { nothing() })")
    page.wait_for_timeout(100)
    assert page.troubles == ["nothing is not defined"]
