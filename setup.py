"""What depends on where bnkit is published: publishing.toml holds the addresses."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ADDRESSES = tomllib.loads(Path("publishing.toml").read_text())
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:)([^)]+)\)")


def readme() -> str:
    """Return README.md with links that work away from the repository, or none."""
    return LINK.sub(_elsewhere, Path("README.md").read_text())


def _elsewhere(link: re.Match[str]) -> str:
    """Return a link to the repository; without one a picture goes, and a link is its text."""
    picture, text, path = link.groups()
    if not ADDRESSES["files"]:
        return "" if picture else text
    return f"{picture}[{text}]({ADDRESSES['files'].rstrip('/')}/{path})"


setup(
    long_description=readme(),
    long_description_content_type="text/markdown",
    project_urls={name: url for name, url in ADDRESSES["links"].items() if url},
)
