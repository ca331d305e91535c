"""The colours of files and page are the same, and legible on their grounds."""

import re
from pathlib import Path

import pytest

import bnkit.report
from bnkit.report.palette import PAGE, PAPER

STYLE = (Path(bnkit.report.__file__).parent / "report.css").read_text()
LIGHT, DARK = (
    dict(re.findall(r"(--[a-z-]+): (#[0-9a-f]{6})", block))
    for block in STYLE.split("(prefers-color-scheme: dark)", 1)
)


def luminance(colour):
    """WCAG 2.2, relative luminance."""
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("part", ["ink", "muted", "grid", "plain", "batch_norm"])
def test_files_have_the_light_colours_of_the_page(part):
    variable = re.fullmatch(r"var\((--[a-z-]+)\)", getattr(PAGE, part))[1]
    assert LIGHT[variable] == getattr(PAPER, part)
    assert DARK[variable] != LIGHT[variable]


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("text", ["--ink", "--muted", "--plain", "--batch-norm"])
@pytest.mark.parametrize("ground", ["--paper", "--raised"])
def test_small_text_is_legible(colours, text, ground):
    assert contrast(colours[text], colours[ground]) >= 4.5  # WCAG 2.2, level AA
