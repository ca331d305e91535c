"""What is wrong with the batch norms of a model: where, how sure, and how to fix it."""

from bnkit.diagnosis.diagnosing import diagnose, diagnose_export
from bnkit.diagnosis.diagnosis import Diagnosis
from bnkit.diagnosis.finding import Finding

__all__ = ["Diagnosis", "Finding", "diagnose", "diagnose_export"]
