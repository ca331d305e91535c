"""The reports: records in, of a comparison or a diagnosis; charts and one HTML file out."""

from bnkit.report.diagnosis import write_diagnosis
from bnkit.report.writing import write_report

__all__ = ["write_diagnosis", "write_report"]
