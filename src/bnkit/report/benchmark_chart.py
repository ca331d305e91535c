"""The chart of a benchmark: how many times longer torch takes than bnkit, one row a mini-batch."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import altair as alt

from bnkit.benchmarking.benchmark import Benchmark
from bnkit.benchmarking.measuring import Measurement
from bnkit.files import strict_json, write_atomically
from bnkit.report.chart_engine import written_whole
from bnkit.report.charts import ONCE, Row, export, layer
from bnkit.report.palette import PAPER
from bnkit.report.scales import Scale
from bnkit.report.svg import inlined

EAGER, COMPILED, INFERENCE = "torch eager", "torch.compile", "torch eager, inference"
# Shape and filling tell the programs apart without colour.
MARKS: dict[str, dict[str, Any]] = {
    EAGER: {"shape": "circle", "size": 55, "filled": True, "color": PAPER.batch_norm},
    COMPILED: {"shape": "circle", "size": 70, "filled": False, "strokeWidth": 2,
               "color": PAPER.plain},
    INFERENCE: {"shape": "diamond", "size": 45, "filled": False, "color": PAPER.muted},
}  # fmt: skip
ROW = 17  # pixels
WIDTH = 560
ROUND = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100)  # ticks


def write_benchmark(benchmark: Benchmark, folder: str | Path) -> Path:
    """Write a benchmark into `folder` and return the path of its page.

    `benchmark.json` holds all numbers; the chart is in `benchmark.png` and `benchmark.svg`, and in
    `benchmark.html`, which opens offline and shows values under the pointer.
    """
    from bnkit.report.templates import filled  # noqa: PLC0415  needed only here

    with written_whole(Path(folder) / "benchmark.html"):
        pictures = export(chart(benchmark))
    drawing = inlined(pictures[".svg"].decode(), "benchmark", widest=1.3 * WIDTH)
    page = filled("benchmark.html", title=_title(benchmark), drawing=drawing)
    files = {
        ".json": strict_json(benchmark.to_json()).encode(),
        **pictures,
        ".html": page.encode(),
    }
    for kind, data in files.items():
        write_atomically(Path(folder) / f"benchmark{kind}", data)
    return Path(folder) / "benchmark.html"


def chart(benchmark: Benchmark) -> dict[str, Any]:
    """Return the Vega-Lite specification of the chart: a panel for each layout, dots, a rule at 1.

    The axis is logarithmic. A grey band shows how far one program differs from itself.
    """
    rows: dict[str, list[Row]] = {m.case.layout: [] for m in benchmark.measurements}
    for measurement in benchmark.measurements:
        rows[measurement.case.layout] += _rows(measurement)
    ratios = [row["ratio"] for panel in rows.values() for row in panel]
    noise = benchmark.noise
    low, high = 0.9 * min(*ratios, 1 / noise), 1.1 * max(*ratios, noise)
    scale = Scale(low, high, tuple(tick for tick in ROUND if low <= tick <= high), "log")
    panels = [_panel(layout, found, scale, noise) for layout, found in rows.items()]
    title = alt.Title(_title(benchmark), subtitle=_caption(benchmark), fontSize=16, offset=20)
    sheet = alt.vconcat(*panels, title=title, spacing=30, padding=20).configure(**PAPER.config)
    specification: dict[str, Any] = sheet.to_dict(validate=False)
    return specification


def _title(benchmark: Benchmark) -> str:
    mean = benchmark.mean_ratio("torch")
    return f"Batch norm and ReLU, training: bnkit is {mean:.1f} times as fast as torch eager (mean)"


def _caption(benchmark: Benchmark) -> list[str]:
    facts = benchmark.environment
    compiled = any(_ratio(m, COMPILED) for m in benchmark.measurements)
    ring = "; ring, torch.compile" if compiled else ""
    versions = [f"{name} {facts[name]}" for name in ("torch", "bnkit") if name in facts]
    machine = [facts[name] for name in ("processor", "date") if name in facts]
    speed = [f"threads: {benchmark.threads}", f"copy {benchmark.bandwidth / 1e9:.0f} GB/s"]
    noise = f"Grey: one program beside itself, at most {benchmark.noise:.2f} times."
    return [
        f"How many times longer torch takes. Training (both ways): dot, torch eager{ring}.",
        f"Diamond: inference, torch eager. {noise}",
        ", ".join([*machine, *speed, *versions]),
    ]


def _rows(m: Measurement) -> Iterable[Row]:
    for program in MARKS:
        ratio = _ratio(m, program)
        if ratio is not None:
            shape = "×".join(map(str, m.case.shape))
            reading = f"{program}, {shape}: {ratio:.2f} times as long as bnkit"
            yield {"mini-batch": shape, "program": program, "ratio": ratio, "reading": reading}


def _ratio(m: Measurement, program: str) -> float | None:
    if program == INFERENCE:
        return m.ratio("inference, torch", "inference, bnkit")
    return m.ratio("torch.compile" if program == COMPILED else "torch")


def _panel(layout: str, rows: list[Row], scale: Scale, noise: float) -> Any:
    order = list(dict.fromkeys(row["mini-batch"] for row in rows))
    title = "times as long as bnkit, logarithmic"
    across = scale.x("ratio", format="~g", grid=True, title=title)
    upright = alt.Y("mini-batch:N", axis=alt.Axis(title=None, grid=False), sort=order)
    differs = {"x": alt.XDatum(1 / noise), "x2": alt.X2Datum(noise)}
    points = [
        layer(
            "point", None, {"opacity": 1, **look}, x=across, y=upright, description="reading:N"
        ).transform_filter(f"datum.program === '{program}'")
        for program, look in MARKS.items()
    ]
    return alt.layer(
        layer("rect", ONCE, {"color": PAPER.grid}, **differs),
        layer("rule", ONCE, {"color": PAPER.ink}, x=alt.XDatum(1)),
        *points,
        data=alt.InlineData(values=rows),
        width=WIDTH,
        height=ROW * len(order),
        title=alt.Title(layout, fontSize=14),
    )
