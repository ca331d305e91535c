"""`Gap`: where eval mode parts from training mode, batch norm by batch norm."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from bnkit.tables import first_few, path_or_model, text_table

_NAMED = 3  # layers in the sentence under the table


@dataclass(frozen=True)
class LayerGap:
    """How far one batch norm parts in eval mode from what it does with the mini-batch's statistics.

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

    def parts(self, threshold: float) -> bool:
        """Return whether its own difference is over `threshold` and over twice that by chance."""
        return not self.own_difference <= max(threshold, 2 * self.chance)  # NaN parts


@dataclass(frozen=True)
class Gap:
    """What parts a model in eval mode from itself in training, on one mini-batch of so many `rows`.

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
    def parting(self) -> tuple[LayerGap, ...]:
        """The layers whose own statistics part the modes, the first to run first."""
        return tuple(layer for layer in self.layers if layer.parts(self.threshold))

    def to_json(self) -> dict[str, Any]:
        """Return all numbers, and the paths of the layers that part, as plain data.

        None stands for what is no number.
        """
        return {
            "rows": self.rows,
            "output_difference": _plain(self.output_difference),
            "threshold": self.threshold,
            "parting": [layer.layer for layer in self.parting],
            "layers": [
                {key: _plain(value) for key, value in asdict(layer).items()}
                for layer in self.layers
            ],
            "left_out": dict(self.left_out),
        }

    def __str__(self) -> str:
        headers = ["layer", "kind", "mean off by", "variance ratio"]
        headers += ["own difference", "by chance", "so far"]
        table = text_table(headers, [_row(layer) for layer in self.layers])
        out = [(path_or_model(path), why) for path, why in self.left_out.items()]
        rest = f"\n\n{text_table(['left out', 'why'], out)}" if out else ""
        return f"{table}{rest}\n\n{self._in_words()}"

    def _in_words(self) -> str:
        output = (
            f"On this mini-batch of {self.rows} the output in eval mode differs by "
            f"{self.output_difference:.2g} of its size by batch statistics."
        )
        if not self.parting:
            return (
                f"{output} No batch norm parts by itself more than {self.threshold:g} and chance."
            )
        named = [f"'{layer.layer}'" if layer.layer else "the model" for layer in self.parting]
        first = first_few(named, separator=", ", shown=_NAMED)
        return (
            f"{output} They part first at {first}, whose running "
            f"statistics are not those of this mini-batch: bnkit.recalibrate measures them anew."
        )


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


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
