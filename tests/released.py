"""`make release`: builds both distributions, and tries them in environments of their own."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import bnkit
from test_extras import CORE, PROLOGUE

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"


def main():
    """Build, check and say what is in dist/."""
    notes = notes_of(bnkit.__version__, (ROOT / "CHANGELOG.md").read_text())
    shutil.rmtree(DIST, ignore_errors=True)
    for project in (ROOT, ROOT / "claims"):
        run(sys.executable, "-m", "build", "--outdir", DIST, project)
    built = sorted(path.name for path in DIST.iterdir())
    names = [f"bnkit{more}-{bnkit.__version__}" for more in ("", "_claims")]
    assert built == sorted(
        f"{name}{end}" for name in names for end in ("-py3-none-any.whl", ".tar.gz")
    ), built
    for ending in (".whl", ".tar.gz"):
        library, claims = (next(DIST.glob(f"{name}*{ending}")) for name in names)
        try_out(library, claims)
    (DIST / "NOTES.md").write_text(notes)
    print(f"dist/ holds {', '.join(built)} and NOTES.md")


def notes_of(version, changelog):
    """Return what the changelog says of a version; ValueError where it is not dated."""
    section = rf"^## {re.escape(version)}, (.*?)\n(.*?)(?=^## |\Z)"
    found = re.search(section, changelog, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"CHANGELOG.md has no section for {version}")
    if found[1] == "unreleased":
        print(f"CHANGELOG.md calls {version} unreleased: write the date before you publish it")
    return found[2].strip() + "\n"


def try_out(library, claims):
    """Install two files into a new environment, the core first, and run them in there."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv" / "bin" / "python"
        install = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        pins = ("--constraint", ROOT / "constraints.txt")
        run(*install, *pins, "torch")
        before, begun = size_of(folder), time.monotonic()
        run(*install, *pins, library)
        seconds, core = time.monotonic() - begun, size_of(folder) - before
        run(python, "-c", PROLOGUE + CORE, cwd=folder)
        print(f"{library.name}: {core / 1e6:.0f} MB beside torch, {seconds:.0f} s, works")
        run(*install, *pins, f"{library}[cli,compare,report]", claims)
        read_only(folder / "venv")
        home = folder / "home"
        home.mkdir()
        for command in (
            ("--version",),
            ("add", "torch.nn:Identity", "--help"),
            ("claims", "--list"),
            ("compare", "--steps", "30", "--seeds", "1", "--learning-rate", "0.1"),
        ):
            run(python, "-m", "bnkit", *command, cwd=home)
        assert (home / "bnkit-report" / "report.html").exists()
        print(f"{claims.name}: works, from an environment that is read-only")
        run("chmod", "-R", "u+w", folder)


def run(*command, cwd=None):
    """Run a command; what it printed is shown if it fails."""
    # Nothing of this checkout may help.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**kept, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")


def size_of(folder):
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def read_only(folder):
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o222)


if __name__ == "__main__":
    main()
