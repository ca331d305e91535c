"""`Gap`: how far eval mode differs from training mode, batch norm by batch norm."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from bnkit.deprecation import warn_of
from bnkit.files import plain
from bnkit.notebooks import Shown
from bnkit.tables import first_few, frame_of, path_or_model, text_table

_NAMED = 3  # layers in the sentence under the table


@dataclass(frozen=True)
class LayerGap:
    """How far one batch norm in eval mode differs from itself with the mini-batch's statistics.

    `mean_shift` is the largest |batch mean − running mean| over the channels, in running standard
    deviations; `least_variance_ratio` and `largest_variance_ratio` are batch variance / running
    variance, each with the layer's eps, as the layer divides by them. `own_difference` is what the
    running statistics of this layer alone change, given the same input: the root mean square of the
    change of its output over that of its output. `chance` is about how large that is for perfect
    running statistics, because the mini-batch is a sample of few rows. `difference` is measured
    between the outputs in both modes, in the same unit, so it has in it all that comes before.
    """

    layer: str
    kind: str
    mean_shift: float
    least_variance_ratio: float
    largest_variance_ratio: float
    own_difference: float
    chance: float
    difference: float

    def diverges(self, threshold: float) -> bool:
        """Return whether its own difference is over `threshold` and over twice that by chance."""
        return not self.own_difference <= max(threshold, 2 * self.chance)  # NaN diverges

    def parts(self, threshold: float) -> bool:
        """Return what `diverges` does, under its old name."""
        warn_of("LayerGap.parts", "LayerGap.diverges")
        return self.diverges(threshold)


@dataclass(frozen=True)
class Gap(Shown):
    """How far eval mode differs from training mode, on one mini-batch of `rows` rows.

    `layers` are the batch norms in the order in which they run, `left_out` gives by their paths the
    reasons why others are not among them. `output_difference` is the root mean square of the
    difference of the model's outputs over that of its outputs by batch statistics. Prints as a
    table.
    """

    rows: int
    layers: tuple[LayerGap, ...]
    output_difference: float
    threshold: float
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def diverging(self) -> tuple[LayerGap, ...]:
        """The layers whose own statistics make the modes differ, the first to run first."""
        return tuple(layer for layer in self.layers if layer.diverges(self.threshold))

    @property
    def parting(self) -> tuple[LayerGap, ...]:
        """The layers in `diverging`, under its old name."""
        warn_of("Gap.parting", "Gap.diverging")
        return self.diverging

    def to_json(self) -> dict[str, Any]:
        """Return all numbers, and the paths of the layers that diverge, as plain data.

        None stands for numbers that are not finite. The paths stand under "diverging" and, for one
        more release, under its old name, "parting".
        """
        diverging = [layer.layer for layer in self.diverging]
        return {
            "rows": self.rows,
            "output_difference": plain(self.output_difference),
            "threshold": self.threshold,
            "diverging": diverging,
            "parting": diverging,
            "layers": [plain(asdict(layer)) for layer in self.layers],
            "left_out": dict(self.left_out),
        }

    def to_frame(self) -> Any:
        """Return a pandas DataFrame, a row for each layer; MissingExtraError without pandas."""
        return frame_of(asdict(layer) for layer in self.layers)

    def __str__(self) -> str:
        headers = ["layer", "kind", "mean off by", "variance ratio"]
        headers += ["own difference", "by chance", "so far"]
        table = text_table(headers, [_row(layer) for layer in self.layers])
        out = [(path_or_model(path), why) for path, why in self.left_out.items()]
        rest = f"\n\n{text_table(['left out', 'why'], out)}" if out else ""
        return f"{table}{rest}\n\n{self._in_words()}"

    def _in_words(self) -> str:
        output = (
            f"On this mini-batch of {self.rows}, in eval mode the output differs from the "
            f"training-mode output by {_percent(self.output_difference)} (relative)."
        )
        if not self.diverging:
            return (
                f"{output} No batch norm diverges by itself, by more than {self.threshold:g} and "
                f"more than chance."
            )
        named = [f"'{layer.layer}'" if layer.layer else "the model" for layer in self.diverging]
        first = first_few(named, separator=", ", shown=_NAMED)
        return (
            f"{output} They first diverge at {first}, whose running statistics are not those of "
            f"this mini-batch: bnkit.recalibrate measures them anew."
        )


def _percent(share: float) -> str:
    """Return a share in percent, of small ones two digits."""
    return f"{share:.0%}" if not share < 0.1 else f"{100 * share:.2g}%"


def _row(layer: LayerGap) -> tuple[str, ...]:
    low, high = layer.least_variance_ratio, layer.largest_variance_ratio
    return (
        path_or_model(layer.layer),
        layer.kind,
        f"{layer.mean_shift:.3g} std",
        f"{low:.3g} to {high:.3g}",
        f"{layer.own_difference:.2g}",
        f"{layer.chance:.2g}",
        f"{layer.difference:.2g}",
    )
