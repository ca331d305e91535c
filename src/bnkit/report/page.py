"""The page: the template, filled with the tables, the charts, the style and the scripts."""

from collections.abc import Sequence

from bnkit.experiments.results import SIDES
from bnkit.experiments.statistics import SuccessRate
from bnkit.experiments.summary import Comparison
from bnkit.report import words
from bnkit.report.costs import costs
from bnkit.report.criteria import criteria
from bnkit.report.figure import Figure
from bnkit.report.gaps import gaps
from bnkit.report.key_figures import key_figures
from bnkit.report.modes import two_modes
from bnkit.report.palette import PAGE
from bnkit.report.templates import library, templates


def page(comparison: Comparison, figures: Sequence[Figure]) -> str:
    """Return the report as one HTML page that needs no other file and no network."""
    panels = [each for figure in figures for group in figure.groups for each in group.panels]
    return (
        templates()
        .get_template("report.html")
        .render(
            comparison=comparison,
            verdict=comparison.verdict,
            cells={(cell.learning_rate, cell.activation): cell for cell in comparison.cells},
            sides=SIDES,
            named=any(map(words.heading, comparison.activations)),
            subject=_subject(comparison),
            target=words.share(comparison.target),
            diverged=sum(trial.outcome == "diverged" for trial in comparison.trials),
            gaps=gaps(comparison.unfinished),
            key_figures=key_figures(comparison),
            costs=costs(comparison),
            two_modes=two_modes(comparison),
            criteria=criteria(comparison),
            few_seeds=_few_seeds(len(comparison.seeds)),
            figures={figure.name: figure for figure in figures},
            look=PAGE.config,
            charts={panel.name: panel.on_page for panel in panels},
            percent_range=words.percent_range,
            library=library(),
        )
    )


def _subject(comparison: Comparison) -> str:
    named = (comparison.settings.get(name) for name in ("network", "data"))
    return " on ".join(words.listed(value) for value in named if value)


def _few_seeds(seeds: int) -> str:
    low = SuccessRate(seeds, seeds).interval[0]
    return (
        f"{seeds}/{seeds} is not certainty: it leaves every success rate from {100 * low:.0f}% up "
        "possible (Wilson's 95% interval)."
    )
