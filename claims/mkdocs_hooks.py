"""The pages of `claims/docs` become a part of the site, under claims/."""  # noqa: INP001  mkdocs loads it by its path

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PAGES = Path(__file__).parent / "docs"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path in sorted(PAGES.rglob("*.*")):
        uri = f"claims/{path.relative_to(PAGES).as_posix()}"
        if path.suffix != ".json":
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files
