"""The report: records of a comparison in; charts, one HTML file and one JSON file out."""

from bnkit.report.writing import write_report

__all__ = ["write_report"]
