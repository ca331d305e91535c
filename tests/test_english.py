"""What users and contributors read has none of the words that CONTRIBUTING rules out."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
PLACES = """
    *.md Makefile docs/*.md src/**/*.py src/**/*.md src/**/*.html tests/**/*.py benchmarks/*.py
    claims/docs/*.md claims/src/**/*.py claims/tests/**/*.py claims/benchmarks/*.py
""".split()

# What is still to be cleaned: this list only gets shorter.
NOT_YET = """
    claims docs/accelerate.md docs/decisions.md
    docs/kinds.md src/bnkit/deprecation.py
    src/bnkit/diagnosis/diagnosis.py src/bnkit/diagnosis/explanation.py
    src/bnkit/diagnosis/finding.py src/bnkit/functional.py
    src/bnkit/kernels src/bnkit/layers tests/cli/test_doctor.py
    tests/cli/test_explaining.py tests/diagnosis tests/kernels
    tests/layers
""".split()


def words():
    """Return the words that the second table of the vocabulary rules out."""
    table = CONTRIBUTING.partition("| we do not write |")[2]
    first = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return re.findall("`([^`]+)`", "".join(first))


RULED_OUT = re.compile(rf"(?<!there )\b({'|'.join(words())})\b", re.IGNORECASE)


def test_the_vocabulary_is_read():
    assert {"nobody", "in the place of", "is no module", "mend"} <= set(words())
    assert RULED_OUT.search("What is no module")
    assert not RULED_OUT.search("is no modulation")
    assert not RULED_OUT.search("where there is no module")


def clean():
    found = {str(p.relative_to(ROOT)) for place in PLACES for p in ROOT.glob(place)}
    return sorted(path for path in found if not path.startswith(tuple(NOT_YET)))


@pytest.mark.parametrize("path", clean())
def test_no_text_has_a_word_that_we_do_not_write(path):
    text = (ROOT / path).read_text().partition("| we do not write |")[0]
    assert RULED_OUT.findall(" ".join(text.split())) == []  # also phrases over two lines
