"""How long the programs of each page of the docs run: `python benchmarks/pages.py`.

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
    environment = {**os.environ, "PYTHONPATH": SOURCES}
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        command = [sys.executable, "-c", program, str(page), *map(str, more)]
        subprocess.run(command, cwd=folder, env=environment, check=True)
        return time.monotonic() - begun


def main() -> None:
    """Run all pages, and keep what they took."""
    found = {}
    for page in sorted(DOCS.glob("*.md")):
        if "```python" in page.read_text():
            found[page.name] = seconds_of(page, RUN)
    for notebook in sorted(DOCS.glob("*.ipynb")):
        tool = DOCS / "building" / "notebooks.py"
        found[f"{notebook.stem}.md"] = seconds_of(notebook, NOTEBOOK, tool)
    rounded = {name: round(seconds, 1) for name, seconds in found.items()}
    (DOCS / "seconds.json").write_text(json.dumps(rounded, indent=1) + "\n")
    print(json.dumps(rounded, indent=1))


if __name__ == "__main__":
    main()
