"""`in_turn`: the cases of a claim, one after another, in this process."""

from collections.abc import Callable, Sequence
from typing import Any

from bnkit.experiments.trials import one_thread
from bnkit.observation import preserved_random_state


def in_turn(measure: Callable[[Any, Any], Any], settings: Any, cases: Sequence[Any]) -> list[Any]:
    """Return what `measure(settings, case)` finds for each case; the generators stay as they are.

    >>> in_turn(lambda settings, case: settings * case, 2, [1, 2, 3])
    [2, 4, 6]
    """
    with preserved_random_state(), one_thread():
        return [measure(settings, case) for case in cases]
