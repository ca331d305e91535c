"""The program `bnkit`, also as `python -m bnkit`."""

import sys

from bnkit.extras import MissingExtraError, require


def main() -> None:
    """Run the command line; without its packages, say in one line how to install them."""
    try:
        require("cli", "the command line of bnkit")
    except MissingExtraError as error:
        sys.stderr.write(f"Error: {error}\n")
        sys.exit(2)
    from bnkit.cli import main as run  # noqa: PLC0415  it needs what may be missing

    run()


if __name__ == "__main__":
    main()
