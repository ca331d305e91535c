"""Conversion between kinds of normalisation: the table of kinds, the change, the calibration."""

from bnkit.surgery.conversion.conversion import Conversion, convert, convert_layer, plan_conversion

__all__ = [
    "Conversion",
    "convert",
    "convert_layer",
    "plan_conversion",
]
