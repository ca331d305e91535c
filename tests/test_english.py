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

# What has none of them yet; the rest follows with the parts that are redrawn.
CLEAN = """
    CONTRIBUTING.md Makefile README.md claims/src/bnkit_claims/report claims/tests/report
    docs/add.md docs/compare.md docs/convert.md docs/fold.md docs/index.md docs/insert.md
    src/bnkit/batches.py src/bnkit/benchmarking src/bnkit/checkpoints src/bnkit/cli/app.py
    src/bnkit/cli/arguments.py src/bnkit/cli/comparison.py src/bnkit/cli/output.py
    src/bnkit/cli/performance.py src/bnkit/dataflow src/bnkit/experiments src/bnkit/files.py
    src/bnkit/internals.py src/bnkit/moments.py src/bnkit/monitoring src/bnkit/names.py
    src/bnkit/observation.py src/bnkit/options.py src/bnkit/parameters.py src/bnkit/progress.py
    src/bnkit/recalibration src/bnkit/references.py src/bnkit/report src/bnkit/roles.py
    src/bnkit/source_code.py src/bnkit/tables.py tests/cli/test_app.py
    tests/cli/test_comparison.py tests/dataflow tests/experiments tests/monitoring
    tests/recalibration tests/report tests/test_ tests/zoo
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
    return sorted(path for path in found if path.startswith(tuple(CLEAN)))


@pytest.mark.parametrize("path", clean())
def test_no_text_has_a_word_that_we_do_not_write(path):
    text = (ROOT / path).read_text().partition("| we do not write |")[0]
    assert RULED_OUT.findall(" ".join(text.split())) == []  # also phrases over two lines
