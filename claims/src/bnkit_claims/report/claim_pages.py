"""`write_claims`: the list of the claims, a page for each, their charts, and all numbers."""

from collections.abc import Iterable
from pathlib import Path

from bnkit.files import strict_json, write_atomically
from bnkit.report.chart_engine import written_whole
from bnkit_claims.core.checked_claims import Checked, CheckedClaim

ORDER = ("holds", "holds in part", "does not hold", "not shown", "failed", "not run")
FOLDER = Path(__file__).parent


def write_claims(checked: Checked, folder: str | Path) -> Path:
    """Write the pages of checked claims into `folder` and return the path of the list.

    `claims.html` lists them with their verdicts; `claims/NAME.html` is a page for each, which
    opens offline; `charts/` holds each chart as PNG and SVG; `claims.json` all numbers. No file is
    ever half-written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_claims(Checked({}), folder).name
    'claims.html'
    """
    folder = Path(folder)
    for claim in checked.claims:
        with written_whole(folder / "claims" / f"{claim.name}.html"):
            files = dict(_files(checked, claim))
        for name, data in files.items():
            write_atomically(folder / name, data)
    write_atomically(folder / "claims.json", strict_json(checked.to_json()).encode())
    write_atomically(folder / "claims.html", _list_page(checked).encode())
    return folder / "claims.html"


def _files(checked: Checked, claim: CheckedClaim) -> Iterable[tuple[str, bytes]]:
    """The charts and the page of one claim, which needs no other file and no network."""
    from bnkit.report.charts import export  # noqa: PLC0415  altair takes a second to import
    from bnkit.report.templates import filled  # noqa: PLC0415  as above
    from bnkit_claims.report.claim_charts import drawn  # noqa: PLC0415  as above

    records = claim.evidence.figures if claim.evidence else ()
    details = claim.evidence.details if claim.evidence else ()
    charts = [drawn(record, f"{claim.name}-{n}") for n, record in enumerate(records, start=1)]
    for chart in charts:
        for kind, data in export(chart.on_sheet).items():
            yield f"charts/{chart.name}{kind}", data
    page = filled(
        "claim.html",
        FOLDER,
        environment=checked.environment,
        claim=claim,
        evidence=claim.evidence,
        columns=list(dict.fromkeys(name for row in details for name in row)),
        charts=charts,
    )
    yield f"claims/{claim.name}.html", page.encode()


def _list_page(checked: Checked) -> str:
    """The page that lists all claims with their verdicts, as HTML."""
    from bnkit.report.templates import filled  # noqa: PLC0415  altair takes a second to import

    verdicts = [claim.verdict for claim in checked.claims]
    counts = {verdict: verdicts.count(verdict) for verdict in ORDER if verdict in verdicts}
    return filled("list.html", FOLDER, checked=checked, counts=counts)
