"""Commands that other distributions bring, by entry points of the group "bnkit.commands"."""

from importlib.metadata import entry_points

import typer

from bnkit.cli.output import refuse

# Commands of a distribution of ours that may not be installed, and its name.
DISTRIBUTIONS = {"claims": "bnkit-claims", "reproduce": "bnkit-claims"}


def add_extensions(app: typer.Typer) -> None:
    """Add the commands of installed distributions to `app`.

    Where one of ours is not installed, its commands say how to install it.
    """
    found = {entry.name: entry for entry in entry_points(group="bnkit.commands")}
    for name, entry in sorted(found.items()):
        app.command(name)(entry.load())
    for name in sorted(DISTRIBUTIONS.keys() - found.keys()):
        _add_missing(app, name)


def _add_missing(app: typer.Typer, name: str) -> None:
    anything = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

    def missing() -> None:
        refuse(
            f"`bnkit {name}` comes with {DISTRIBUTIONS[name]}, which is not installed: "
            f"pip install {DISTRIBUTIONS[name]}, or in a checkout of bnkit "
            f"pip install -c constraints.txt -e . -e ./claims"
        )

    app.command(name, hidden=True, context_settings=anything)(missing)
