"""The settings of a comparison that its charts show: all, or of very many the best."""

from bnkit.experiments.summary import Comparison

MOST = 24  # panels in a chart

Setting = tuple[float, str]  # learning rate, activation


def shown_settings(comparison: Comparison) -> tuple[Setting, ...]:
    """Return the settings, in their order: of more than `MOST` those at which a side ends best.

    Each side has its own share of them, its best first, and so each side's best is among them.
    """
    cells = comparison.cells
    if len(cells) <= MOST:
        return tuple((cell.learning_rate, cell.activation) for cell in cells)
    share = MOST // len(comparison.sides)
    best = {
        (cell.learning_rate, cell.activation)
        for side in comparison.sides
        for cell in comparison.ranked(side)[:share]
    } or {(cells[0].learning_rate, cells[0].activation)}
    ordered = ((cell.learning_rate, cell.activation) for cell in cells)
    return tuple(setting for setting in ordered if setting in best)


def left_out(comparison: Comparison) -> tuple[str, ...]:
    """Return the sentence for a caption that not all settings are drawn, where that is so."""
    shown, every = len(shown_settings(comparison)), len(comparison.cells)
    if shown == every:
        return ()
    those = f"{shown} of the {every:,} settings, those at which a side ends best"
    return (f"Drawn are {those}; the tables have all.",)
