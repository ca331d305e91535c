"""`make release`: builds both distributions, and tries them in environments of their own."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile
from collections import Counter
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
    for name, project in zip(names, (ROOT, ROOT / "claims"), strict=True):
        check_sources(DIST / f"{name}.tar.gz", project)
        check_description(DIST / f"{name}-py3-none-any.whl")
    for ending in (".whl", ".tar.gz"):
        library, claims = (next(DIST.glob(f"{name}*{ending}")) for name in names)
        try_out(library, claims)
    (DIST / "NOTES.md").write_text(notes)
    print(f"dist/ holds {', '.join(built)} and NOTES.md")


def check_sources(sdist, project):
    """Assert that an archive has all that git has of a project, but for what serves git and CI."""
    listed = subprocess.run(["git", "ls-files"], cwd=project, capture_output=True, check=True)
    tracked = set(listed.stdout.decode().splitlines())
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    left_out = {name for name in tracked - held if not name.startswith(("claims/", ".ci/", ".git"))}
    assert not left_out, f"{sdist.name} lacks {sorted(left_out)}"
    print(f"{sdist.name}: {len(tracked & held)} files of {project.name}")


def check_description(wheel):
    """Assert that no link of the page on a package index is dead."""
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        text = archive.read(path).decode()
    relative = re.findall(r"\]\((?!https?:)[^)]+\)", text)
    assert not relative, f"{wheel.name}: dead on a package index: {relative}"


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
        before, begun = sizes_of(folder), time.monotonic()
        run(*install, *pins, library)
        seconds, core = time.monotonic() - begun, sizes_of(folder) - before
        home = folder / "home"
        home.mkdir()
        run(python, "-c", PROLOGUE + CORE, home=home)
        print(f"{library.name}: works beside torch; installed in {seconds:.0f} s, in MB:")
        for name, size in core.most_common():
            if size >= 50_000:
                print(f"  {name:12} {size / 1e6:5.1f}")
        print(f"  {'all':12} {core.total() / 1e6:5.1f}")
        run(*install, *pins, f"{library}[cli,compare,report]", claims)
        read_only(folder / "venv")
        for command in (
            ("--version",),
            ("add", "torch.nn:Identity", "--help"),
            ("claims", "--list"),
            ("compare", "--steps", "30", "--seeds", "1", "--learning-rate", "0.1"),
        ):
            run(python, "-m", "bnkit", *command, home=home, unprivileged=True)
        assert (home / "bnkit-report" / "report.html").exists()
        print(f"{claims.name}: works, from an environment that is read-only")
        shutil.rmtree(home / ".cache", ignore_errors=True)  # the core, if there was a compiler
        read_only(home)
        run("sh", "-c", "! touch bnkit-report/a", home=home, unprivileged=True)  # it is refused
        run(python, "-c", PROLOGUE + CORE, home=home, unprivileged=True)
        print(f"{library.name}: works, with a home that is read-only, too")
        run("chmod", "-R", "u+w", folder)


def run(*command, home=None, unprivileged=False):
    """Run a command; what it printed is shown if it fails.

    `home` is where it runs, and where it finds no core of an earlier run. `unprivileged` takes from
    root what writes to files that are read-only.
    """
    # Nothing of this checkout may help.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if home is not None:
        kept = {**kept, "HOME": str(home), "XDG_CACHE_HOME": ""}
    if unprivileged and os.geteuid() == 0:
        command = ("setpriv", "--bounding-set=-dac_override", *command)
    done = subprocess.run(
        [str(part) for part in command],
        cwd=home,
        env={**kept, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")


def sizes_of(environment):
    """Return the bytes of each package that is installed, and of the bytecode that pip makes."""
    sizes = Counter()
    (packages,) = environment.glob("venv/lib/*/site-packages")
    for path in environment.rglob("*"):
        if path.is_file() and not path.is_symlink():
            inside = path.relative_to(packages).parts if path.is_relative_to(packages) else ["bin"]
            name = re.split(r"[-.]", inside[0])[0]
            sizes["bytecode" if path.suffix == ".pyc" else name] += path.stat().st_size
    return sizes


def read_only(folder):
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o222)


if __name__ == "__main__":
    main()
