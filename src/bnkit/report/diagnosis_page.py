"""`write_diagnosis`: what is wrong, where, how it was measured, and every batch norm."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from bnkit.diagnosis.diagnosis import Diagnosis
from bnkit.diagnosis.explanation import explanation_of
from bnkit.diagnosis.finding import SEVERITIES, Finding
from bnkit.diagnosis.layer_records import LayerRecord
from bnkit.experiments.provenance import environment
from bnkit.extras import require
from bnkit.files import write_atomically
from bnkit.report.chart_engine import written_whole
from bnkit.tables import several

ENDINGS = (".html", ".htm")


def write_diagnosis(
    diagnosis: Diagnosis, path: str | Path, *, made: Mapping[str, object] | None = None
) -> Path:
    """Write a diagnosis as one HTML page, which opens offline, to `path`, and return that.

    It shows the findings, worst first, each with those that follow from it and with the explanation
    of its rule, and charts and a table of all batch norms. `made` says how the diagnosis was made,
    such as the command, the data and the checkpoint; the versions, the machine and the date stand
    beside it. The page is never half-written, and where drawing fails an older page stays as it
    was. Raises ValueError for a `path` that is not of an HTML file, MissingExtraError without
    bnkit[report], ChildProcessError where memory is too short to draw.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_diagnosis(Diagnosis("Net", 0, ()), f"{folder}/net.html").name
    'net.html'
    """
    path = checked(path)
    with written_whole(path):
        html = page(diagnosis, made)
    write_atomically(path, html.encode())
    return path


def checked(path: str | Path) -> Path:
    """Return the path, which must be that of an HTML file; ValueError for others.

    >>> checked("sick.html").name
    'sick.html'
    """
    path = Path(path)
    if path.suffix.lower() not in ENDINGS or path.is_dir():
        raise ValueError(f"`path` is '{path}': give the name of a file that ends in .html")
    return path


def page(diagnosis: Diagnosis, made: Mapping[str, object] | None = None) -> str:
    """Return the page, which needs no other file and no network."""
    require("report", "the page of a diagnosis")
    from markdown_it import MarkdownIt  # noqa: PLC0415  needed only here

    from bnkit.report import per_layer  # noqa: PLC0415  altair takes a second to import
    from bnkit.report.templates import filled  # noqa: PLC0415  as above

    layers = diagnosis.layers
    panels = (
        per_layer.gap_panel(layers),
        per_layer.means_panel(layers),
        per_layer.variances_panel(layers),
        per_layer.gammas_panel(layers),
        per_layer.dead_panel(layers),
    )
    prose = MarkdownIt("commonmark", {"html": False}).render  # HTML in it is escaped
    return filled(
        "diagnosis.html",
        panels={panel.name: panel for panel in panels if panel is not None},
        diagnosis=diagnosis,
        answer=answer(diagnosis),
        made={**(made or {}), **environment()},
        notes=_counts(diagnosis)["info"],
        worst=diagnosis.worst or "healthy",
        explained={
            rule.slug: {"summary": rule.summary, "text": prose(explanation_of(rule).body)}
            for rule in diagnosis.rules
            if any(finding.rule == rule.slug for finding in diagnosis.findings)
        },
        layers=layers,
        diverges=diverges,
        first=next(filter(diverges, layers), None),
        shown={
            f.name: any(getattr(each, f.name) is not None for each in layers)
            for f in fields(LayerRecord)
        },
        columns=columns,
        name_of=per_layer.name_of,
        name_of_card=lambda group: f"{group.first.rule}-{group.first.place}".replace(" ", "-"),
    )


def answer(diagnosis: Diagnosis) -> str:
    """Return the headline: how many errors and warnings there are.

    >>> answer(Diagnosis("Net", 3, ()))
    'No errors, no warnings'
    >>> answer(Diagnosis("Net", 0, ()))
    'No batch norm in Net'
    """
    counts = _counts(diagnosis)
    found = [several(counts[s], s) for s in ("error", "warning") if counts[s]]
    if not found and not diagnosis.batch_norms and not diagnosis.findings:
        return f"No batch norm in {diagnosis.model}"
    gap = _difference_of_modes(diagnosis)
    but = f", but the two modes differ by {gap:.0%}" if gap and not found else ""
    return (", ".join(found) or "No errors, no warnings") + but


def _difference_of_modes(diagnosis: Diagnosis) -> float | None:
    """Return how far the outputs of the two modes differ, None where that was not found."""
    gaps = (each.measured for each in diagnosis.findings if each.rule == "train-eval-gap")
    return max((float(next(iter(each.values()))) for each in gaps if each), default=None)


def _counts(diagnosis: Diagnosis) -> dict[str, int]:
    return {s: sum(f.severity == s for f in diagnosis.findings) for s in SEVERITIES}


def diverges(layer: LayerRecord) -> bool:
    """Return whether this layer's running statistics make eval mode diverge from training.

    >>> diverges(LayerRecord("bn", "BatchNorm2d", own_difference=0.3, tolerance=0.1))
    True
    """
    own, bar = layer.own_difference, layer.tolerance
    return own is not None and bar is not None and own > bar


def columns(findings: Sequence[Finding]) -> list[str]:
    """Return the names of all that was measured in one of the findings, in their order."""
    return list(dict.fromkeys(name for finding in findings for name in finding.measured))
