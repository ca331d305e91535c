"""Conversion between kinds of normalisation: the table of kinds, the change, the calibration."""

from bnkit.surgery.conversion.conversion import convert, convert_layer, plan_conversion
from bnkit.surgery.conversion.record import Conversion

__all__ = [
    "Conversion",
    "convert",
    "convert_layer",
    "plan_conversion",
]
