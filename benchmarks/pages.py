"""How long the programs of each page of the docs run: `python benchmarks/pages.py [PAGE.md …]`.

Each page runs in a process of its own, as its test runs it; the seconds are those of the machine's
clock, imports included. The result goes to docs/seconds.json, from which the site shows it. Nothing
else should run meanwhile.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SECONDS = DOCS / "seconds.json"
RUN = """
import sys
from pathlib import Path
import pytest
from pages import check_page
check_page(Path(sys.argv[1]), Path.cwd(), pytest.MonkeyPatch())
"""
NOTEBOOK = """
import runpy
import sys
from pathlib import Path
runpy.run_path(sys.argv[2])["run"](Path(sys.argv[1]))
"""
SOURCES = ":".join(str(ROOT / folder) for folder in ("tests", "src", "claims/src"))


def seconds_of(page: Path, program: str, *more: Path) -> float:
    """Return how long a page runs, in an empty folder."""
    environment = {"KERAS_BACKEND": "torch", **os.environ, "PYTHONPATH": SOURCES}
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        command = [sys.executable, "-c", program, str(page), *map(str, more)]
        subprocess.run(command, cwd=folder, env=environment, check=True)
        return time.monotonic() - begun


def main(names: list[str]) -> None:
    """Run the pages of these names, or all, and keep what they took; the others stay."""
    written = {page.name: page for page in DOCS.glob("*.md")}
    written |= {f"claims/{page.name}": page for page in (ROOT / "claims" / "docs").glob("*.md")}
    pages = {name: page for name, page in written.items() if "```python" in page.read_text()}
    pages |= {f"{notebook.stem}.md": notebook for notebook in DOCS.glob("*.ipynb")}
    found = json.loads(SECONDS.read_text())
    for name in names or sorted(pages):
        page = pages[name]
        more = (NOTEBOOK, DOCS / "building" / "notebooks.py") if page.suffix == ".ipynb" else (RUN,)
        found[name] = round(seconds_of(page, *more), 1)
        print(f"{name}: {found[name]} s", flush=True)
        SECONDS.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
