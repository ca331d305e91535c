"""The reports: records in, of a comparison or a diagnosis; charts and one HTML file out."""

from bnkit.report.comparison_page import write_report
from bnkit.report.diagnosis_page import write_diagnosis

__all__ = ["write_diagnosis", "write_report"]
