"""`write_claims`: the list of the claims, a page for each, their charts, and all numbers."""

from collections.abc import Iterable
from pathlib import Path

from bnkit.files import strict_json, write_atomically
from bnkit.report.writing import export
from bnkit_claims.core.checked import Checked, CheckedClaim


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
        for name, data in _files(checked, claim):
            write_atomically(folder / name, data)
    from bnkit_claims.report.page import list_page  # noqa: PLC0415  altair takes a second

    write_atomically(folder / "claims.json", strict_json(checked.to_json()).encode())
    write_atomically(folder / "claims.html", list_page(checked).encode())
    return folder / "claims.html"


def _files(checked: Checked, claim: CheckedClaim) -> Iterable[tuple[str, bytes]]:
    from bnkit_claims.report.figures import drawn  # noqa: PLC0415  altair takes a second
    from bnkit_claims.report.page import claim_page  # noqa: PLC0415

    charts = [] if claim.evidence is None else claim.evidence.figures
    figures = [drawn(chart, f"{claim.name}-{n}") for n, chart in enumerate(charts, start=1)]
    for figure in figures:
        for kind, data in export(figure.on_sheet).items():
            yield f"charts/{figure.name}{kind}", data
    yield f"claims/{claim.name}.html", claim_page(checked, claim, figures).encode()
