"""What is wrong with the batch norms of a model: where, how sure, and how to fix it."""

from bnkit.diagnosis.diagnosing import diagnose
from bnkit.diagnosis.diagnosis import Diagnosis
from bnkit.diagnosis.finding import Finding
from bnkit.diagnosis.rules.programs import diagnose_export

__all__ = ["Diagnosis", "Finding", "diagnose", "diagnose_export"]
