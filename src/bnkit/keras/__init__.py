"""The verbs for Keras 3 models: `import bnkit.keras as bnk`; the backend is the user's."""

from bnkit.extras import require

require("keras", "bnkit.keras")

from bnkit.keras.addition import add, insert, plan_addition, plan_insertion
from bnkit.keras.comparing import compare
from bnkit.keras.diagnosis import Diagnosis, diagnose
from bnkit.keras.folding import fold, plan_folding, plan_removal, remove
from bnkit.keras.functional import as_functional
from bnkit.keras.gap import explain_gap
from bnkit.keras.plan import Plan
from bnkit.keras.recalibration import Recalibration, plan_recalibration, recalibrate
from bnkit.keras.settings import KerasSettings

__all__ = [
    "Diagnosis",
    "KerasSettings",
    "Plan",
    "Recalibration",
    "add",
    "as_functional",
    "compare",
    "diagnose",
    "explain_gap",
    "fold",
    "insert",
    "plan_addition",
    "plan_folding",
    "plan_insertion",
    "plan_recalibration",
    "plan_removal",
    "recalibrate",
    "remove",
]
