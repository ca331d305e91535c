"""`make test-matrix`: the tests on several versions of torch, one environment at a time."""

import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
TORCH = ("2.9.1", "2.13.0", "2.14.1")
TESTS = "tests/layers tests/surgery tests/dataflow tests/recalibration tests/train_eval_gap".split()
TESTS += [f"tests/test_{name}.py" for name in "moments functional norms roles checkpoints".split()]


def main(versions):
    """Print a row of a table for each version."""
    print("| torch | Python | passed | failed | skipped |\n|---|---|---|---|---|")
    for version in versions:
        with tempfile.TemporaryDirectory() as folder:
            print(row(version, Path(folder)), flush=True)


def row(version, folder):
    """Install this torch with what the tests need, run them, and return what came out."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    tools = ["hypothesis", "pytest", "pytest-xdist"]
    packages = [f"torch=={version}", "numpy", "rich", "safetensors", *tools]
    subprocess.run([*install, *packages], check=True)
    subprocess.run([*install, "--no-deps", "--editable", ROOT], check=True)
    options = ["-q", "-o", "addopts=--strict-markers --import-mode=importlib"]
    done = subprocess.run(
        [python, "-m", "pytest", *options, *TESTS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / f"torch-{version}.log").write_text(done.stdout)
    last = done.stdout.rstrip().rpartition("\n")[2]
    counts = {what: number for number, what in re.findall(r"(\d+) (passed|failed|skipped)", last)}
    cells = [counts.get(what, "0") for what in ("passed", "failed", "skipped")]
    return f"| {version} | {sys.version.split()[0]} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main(sys.argv[1:] or TORCH)
