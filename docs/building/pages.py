"""Pages of the site that are made: the reference, notebooks, addresses, and the claims' pages."""

import html
import inspect
import json
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parent))  # mkdocs loads this file by its path

from docstrings import MODULES, anchor_of, documented, public_names  # noqa: E402

SECONDS: dict[str, float] = json.loads((ROOT / "docs" / "seconds.json").read_text())


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill in where bnkit is published, and the pages of the reference."""
    links = tomllib.loads((ROOT / "publishing.toml").read_text())["links"]
    config.repo_url, config.site_url = links["Source"] or None, links["Documentation"] or None
    for section in config.nav:
        if "Reference" in section:
            section["Reference"] = [
                {"All names": "reference/index.md"},
                *({module: f"reference/{module}.md"} for module in MODULES),
            ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that no file of docs/ holds."""
    made = {f"reference/{module}.md": _page_of(module) for module in MODULES}
    made["reference/index.md"] = _all_names()
    for notebook in (ROOT / "docs").glob("*.ipynb"):
        made[f"{notebook.stem}.md"] = from_notebook(json.loads(notebook.read_text()))
    for uri, content in made.items():
        files.append(File.generated(config, uri, content=content))
    claims = ROOT / "claims" / "docs"
    for path in sorted(claims.rglob("*.*")):
        if path.suffix != ".json":
            uri = f"claims/{path.relative_to(claims).as_posix()}"
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Say under the title how long the programs of a page run."""
    seconds = SECONDS.get(page.file.src_uri)
    if seconds is None:
        return markdown
    title, _, rest = markdown.partition("\n")
    took = f"{seconds:.0f} s" if seconds >= 1 else "under a second"
    return f"{title}\n\n<p class=seconds>The programs of this page run in {took}.</p>\n{rest}"


def _page_of(module: str) -> str:
    # Verbs first, then their plans, then records
    order = sorted(public_names(module), key=lambda n: (n[0].isupper(), n.startswith("plan_")))
    names = [anchor_of(module, name) for name in order]
    blocks = "\n".join(f"::: {name}\n" for name in names)
    prose = inspect.cleandoc(import_module(module).__doc__ or "")
    return f"# {module}\n\n{prose}\n\n{blocks}"


def _all_names() -> str:
    rows = []
    for module, names in documented().items():
        rows += ["", f"## [{module}]({module}.md)", "", "| name | what it is |", "|---|---|"]
        rows += [f"| [`{name}`][{name}] | {_first_sentence(name, module)} |" for name in names]
    return "\n".join(["# Reference", "", "Every public name, by module.", *rows])


def _first_sentence(name: str, module: str) -> str:
    found: Any = import_module("bnkit")
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    if isinstance(found, tuple | str | dict | list):
        return f"one of the constants of `{module}`"
    first = inspect.cleandoc(found.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    return first.replace("|", r"\|")


# Notebooks


def from_notebook(notebook: dict[str, Any]) -> str:
    """Return a notebook, with its outputs, as a page."""
    return "\n\n".join(
        text
        for cell in notebook["cells"]
        for text in (
            [_source(cell)]
            if cell["cell_type"] == "markdown"
            else [f"```python\n{_source(cell)}\n```", *map(_output, cell["outputs"])]
        )
        if text
    )


def _source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "text/html" in data:
        # In one line: a blank line would end the HTML for Markdown.
        lines = [line.strip() for line in "".join(data["text/html"]).splitlines()]
        return f'<div class="output">{" ".join(filter(None, lines))}</div>'
    text = "".join(output.get("text") or data.get("text/plain") or [])
    return (
        f"<pre class=output tabindex=0>{html.escape(text.rstrip())}</pre>" if text.strip() else ""
    )
