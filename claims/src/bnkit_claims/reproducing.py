"""`reproduce` under the name that installations of before know; goes with the next release."""

from bnkit_claims.cli import reproduce

__all__ = ["reproduce"]
