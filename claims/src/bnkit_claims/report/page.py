"""The pages: the templates, filled with claims, their charts, the style and the scripts."""

from collections.abc import Sequence
from pathlib import Path

from bnkit.report.figure import Figure
from bnkit.report.palette import PAGE
from bnkit.report.templates import library, templates
from bnkit_claims.core.checked import Checked, CheckedClaim

ORDER = ("holds", "holds in part", "does not hold", "not shown", "failed", "not run")


def list_page(checked: Checked) -> str:
    """Return the page that lists all claims with their verdicts, as HTML without scripts."""
    found = {
        verdict: [claim for claim in checked.claims if claim.verdict == verdict]
        for verdict in ORDER
    }
    return (
        templates(Path(__file__).parent)
        .get_template("list.html")
        .render(
            checked=checked,
            counts={verdict: len(claims) for verdict, claims in found.items() if claims},
        )
    )


def claim_page(checked: Checked, claim: CheckedClaim, figures: Sequence[Figure]) -> str:
    """Return the page of one claim, which needs no other file and no network."""
    panels = [each for figure in figures for group in figure.groups for each in group.panels]
    details = claim.evidence.details if claim.evidence else ()
    return (
        templates(Path(__file__).parent)
        .get_template("claim.html")
        .render(
            environment=checked.environment,
            claim=claim,
            evidence=claim.evidence,
            columns=list(dict.fromkeys(name for row in details for name in row)),
            figures=figures,
            look=PAGE.config,
            charts={panel.name: panel.on_page for panel in panels},
            library=library(),
        )
    )
