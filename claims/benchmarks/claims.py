"""Measure every claim about batch norm on MNIST, and make the page of the docs from it.

    python claims/benchmarks/claims.py --data-dir FOLDER [claim ...]

Results are kept in bnkit-claims; run the same command to resume. In claims/docs the figures go to
claims.json, the charts to charts/, and the tables of claims.md are made from them.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from bnkit.experiments.provenance import usable_cores
from bnkit.files import strict_json, write_atomically
from bnkit.report.charts import export
from bnkit_claims.claims.all_claims import CLAIMS
from bnkit_claims.core.cases import Repetition
from bnkit_claims.core.checked_claims import Checked, CheckedClaim, check_claims
from bnkit_claims.core.claim import claim_named
from bnkit_claims.core.evidence import Evidence
from bnkit_claims.report import write_claims
from bnkit_claims.report.claim_charts import drawn

DOCS = Path(__file__).parents[1] / "docs"
FIGURES = DOCS / "claims.json"
PAGE = DOCS / "claims.md"
BEGIN, END = "<!-- claims -->\n", "<!-- end of claims -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("claims", nargs="*", metavar="claim", help="all of them if none is named")
    parser.add_argument("--data-dir", type=Path, help="folder of the MNIST files, else downloaded")
    parser.add_argument("--data", default="mnist", help="mnist, fashion-mnist or digits")
    parser.add_argument("--jobs", type=int, help="processes, one a core by default")
    parser.add_argument("--out", type=Path, default=Path("bnkit-claims"))
    options = parser.parse_args()
    chosen = [claim_named(CLAIMS, name) for name in options.claims] or list(CLAIMS)
    how = Repetition(options.out, options.data_dir, jobs=options.jobs or usable_cores())
    checked = check_claims(chosen, options.data, how)
    print(checked)
    write_claims(checked, options.out)
    keep(merged(checked), drawn_anew=checked.claims)


def merged(checked: Checked) -> Checked:
    """Return the claims that were kept before, with those that were measured now in their place."""
    before = Checked.from_json(json.loads(FIGURES.read_text())) if FIGURES.exists() else Checked({})
    found = {claim.name: claim for claim in before.claims}
    found |= {claim.name: claim for claim in checked.claims if claim.evidence is not None}
    order = [claim.name for claim in CLAIMS if claim.name in found]
    return Checked(checked.environment, tuple(found[name] for name in order))


def keep(checked: Checked, *, drawn_anew: Iterable[CheckedClaim]) -> None:
    """Write the figures, the charts of the claims measured now, and the page into the docs."""
    write_atomically(FIGURES, (strict_json(checked.to_json()) + "\n").encode())
    for claim in drawn_anew:
        for name, chart in charts(claim).items():
            write_atomically(DOCS / "charts" / f"{name}.png", chart)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + page(checked) + END + rest.partition(END)[2])


def charts(claim: CheckedClaim) -> dict[str, bytes]:
    """Return the charts of a claim as PNG, a pixel a point: there are many of them."""
    figures = claim.evidence.figures if claim.evidence else ()
    names = [f"{claim.name}-{number}" for number in range(1, len(figures) + 1)]
    return {
        name: export(drawn(figure, name).on_sheet, scale=1)[".png"]
        for name, figure in zip(names, figures, strict=True)
    }


def page(checked: Checked) -> str:
    """Return the Markdown of all claims: a table, then a section for each with its charts."""
    lines = ["| claim | verdict | measured |", "|---|---|---|"]
    for claim in checked.claims:
        link = f"[{claim.statement}](#{claim.name})"
        lines.append(f"| {link} | **{claim.verdict}** | {claim.measured} |")
    return "\n".join([*lines, "", *map(section, checked.claims)]) + "\n"


def section(claim: CheckedClaim) -> str:
    """Return the Markdown of one claim."""
    sources = "; ".join(f"{source.who}: {source.says}" for source in claim.sources)
    ran = f"{claim.settings['data']}, {claim.settings['seeds']} seeds"
    evidence = claim.evidence
    if evidence is None:
        raise ValueError(f"{claim.name} was not measured: {claim.reason}")
    return (
        "\n\n".join(
            [
                f'<a id="{claim.name}"></a>\n## {claim.statement}',
                f"**{claim.verdict.capitalize()}.** {claim.measured}",
                *evidence.notes,
                *(
                    f"![{figure.title}](charts/{claim.name}-{number}.png)"
                    for number, figure in enumerate(evidence.figures, start=1)
                ),
                "\n".join(parts(evidence)),
                f"*Measured:* {claim.measurement}",
                f"*The verdict:* {claim.criteria}",
                f"*Who says it:* {sources}.",
                f"*To repeat it:* `{claim.command}` ({ran})",
            ]
        )
        + "\n"
    )


def parts(evidence: Evidence) -> Iterable[str]:
    """Yield the lines of a Markdown table: the parts of a claim, and what was measured beside."""
    yield "| part of the claim | measured (95% interval) | verdict |"
    yield "|---|---|---|"
    for part in evidence.parts:
        yield f"| {part.what} | {part.figures} | **{part.verdict}** |"
    for each in evidence.beside:
        yield f"| {each.what} | {each.figures} | not counted |"


if __name__ == "__main__":
    main()
