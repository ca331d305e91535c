"""The command line: parse, call one public function, print."""

from bnkit.cli.app import app, main

__all__ = ["app", "main"]
