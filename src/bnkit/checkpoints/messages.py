"""What the messages about checkpoints have in common."""

from collections.abc import Iterable
from pathlib import Path

SHOWN = 8  # names in a message


def damaged(path: Path, error: Exception) -> str:
    r"""Return the message for a file at `path` of which reading raised `error`, in one line.

    >>> damaged(Path("a.pt"), EOFError("Ran out of input\nafter 3 bytes"))
    'a.pt is damaged or cut short (EOFError: Ran out of input): fetch it again'
    """
    reason = str(error).partition("\n")[0].partition(". ")[0]
    return f"{path} is damaged or cut short ({type(error).__name__}: {reason}): fetch it again"


def listed(names: Iterable[str]) -> str:
    """Return the names in quotes, a long list cut.

    >>> listed(["weight", "bias"])
    "'weight', 'bias'"
    """
    names = [f"'{name}'" for name in names]
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
