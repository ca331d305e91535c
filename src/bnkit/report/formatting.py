"""Values as text: one way to write each quantity, and a dash where there is none."""

import math
from collections.abc import Mapping

from bnkit.experiments.metrics import Metric
from bnkit.experiments.results import Side
from bnkit.experiments.summary import SideSummary

NOTHING = "–"
SHORT: dict[Side, str] = {
    "batch norm": "BN",
    "group norm": "GN",
    "layer norm": "LN",
    "instance norm": "IN",
    "ghost batch norm": "ghost BN",
}


def measured(value: float | None, metric: Metric) -> str:
    """Return a value of the metric as it is written.

    >>> from bnkit.experiments.metrics import ACCURACY
    >>> measured(0.9312, ACCURACY), measured(None, ACCURACY)
    ('93.1%', '–')
    """
    return NOTHING if value is None or math.isnan(value) else metric.written(value)


def measured_range(lowest: float | None, highest: float | None, metric: Metric) -> str:
    """Return a range of values of the metric.

    >>> from bnkit.experiments.metrics import ACCURACY
    >>> measured_range(0.9, 0.955, ACCURACY)
    '90.0% to 95.5%'
    """
    if lowest is None or highest is None:
        return NOTHING
    return f"{measured(lowest, metric)} to {measured(highest, metric)}"


def number(value: float | None) -> str:
    """Return a number to four digits, with commas between thousands.

    >>> number(0.1), number(12345), number(1e-5), number(None)
    ('0.1', '12,345', '1e-05', '–')
    """
    if value is None or math.isnan(value):
        return NOTHING
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def milliseconds(value: float | None) -> str:
    """Return a time in milliseconds to two digits, which is all that such times are good for.

    >>> milliseconds(0.61234), milliseconds(123.4), milliseconds(None)
    ('0.61', '120', '–')
    """
    return NOTHING if value is None else number(float(f"{value:.2g}"))


def steps_to_target(side: SideSummary) -> str:
    """Return the median of a side's steps to the target, "never" where it does not get there."""
    if side.metric is None:
        return NOTHING
    return "never" if side.steps_to_target is None else f"{side.steps_to_target:,.0f}"


def counted(outcomes: Mapping[str, int]) -> str:
    """Return the outcomes other than finished, each with its count.

    >>> counted({"finished": 2, "diverged": 1, "not run": 3})
    '1 diverged, 3 not run'
    """
    return ", ".join(f"{n} {outcome}" for outcome, n in outcomes.items() if outcome != "finished")


def listed(value: object) -> str:
    """Return a setting's value for reading: a list as its items, all else as it prints.

    >>> listed([0.01, 0.1]), listed("digits"), listed(None), listed({"width": 100}), listed(True)
    ('0.01, 0.1', 'digits', '–', 'width: 100', 'yes')
    """
    match value:
        case None | "" | [] | ():
            return NOTHING
        case list() | tuple():
            return ", ".join(map(listed, value))
        case dict():
            return ", ".join(f"{name}: {listed(item)}" for name, item in value.items())
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def in_words(value: object) -> str:
    """Return what was measured to three digits, with a typographic minus sign.

    >>> in_words(1199.4), in_words(16384), in_words(-0.01234), in_words(True)
    ('1,199', '16,384', '−0.0123', 'yes')
    """
    if isinstance(value, float) and not 1000 <= abs(value) < 1e6:
        return short(value, digits=3)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,.0f}"
    return listed(value)


def short(value: float, *, digits: int = 2) -> str:
    """Return a number to so many digits, with a typographic minus sign.

    >>> short(-0.5678)
    '−0.57'
    """
    return f"{value:.{digits}g}".replace("-", "−")


def short_name(side: Side) -> str:
    """Return the name of a side where there is little room.

    >>> short_name("batch norm"), short_name("plain")
    ('BN', 'plain')
    """
    return SHORT.get(side, side)


def heading(activation: str) -> str:
    """Return the name of an activation, empty where a model keeps those that it was built with.

    >>> heading("relu"), heading("as built")
    ('relu', '')
    """
    return "" if activation == "as built" else activation


def after_comma(activation: str) -> str:
    """Return the heading of an activation as the end of a list, empty where it has none.

    >>> after_comma("relu"), after_comma("as built")
    (', relu', '')
    """
    return f", {heading(activation)}" if heading(activation) else ""


def ratio(value: float | None) -> str:
    """Return how many times, to three digits.

    >>> ratio(3.14159), ratio(None)
    ('3.14', '–')
    """
    return NOTHING if value is None else f"{value:.3g}"
