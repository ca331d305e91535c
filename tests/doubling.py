"""A claim's settings and measuring functions, where other processes can import them."""

from dataclasses import dataclass

from bnkit_claims.core.claim import ClaimSettings


@dataclass(frozen=True, kw_only=True)
class Doubling(ClaimSettings):
    factor: float = 2.0


def double(settings, case):
    return settings.factor * case


def broken(settings, case):
    raise ZeroDivisionError(f"nothing to divide {case} by in {settings.data}")
