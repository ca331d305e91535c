"""Changes to models, each planned, applied to a copy and checked."""

from bnkit.surgery import adjustments  # noqa: F401  enters its operations into the table
from bnkit.surgery.acceleration import accelerate, plan_acceleration
from bnkit.surgery.addition import add, plan_addition
from bnkit.surgery.conversion import Conversion, convert, plan_conversion
from bnkit.surgery.folding import fold, fold_pair, plan_folding
from bnkit.surgery.insertion import Insertion, insert, plan_insertion
from bnkit.surgery.operations import Edit, replay
from bnkit.surgery.optimizers import rebind
from bnkit.surgery.plan import LeftAlone, Plan
from bnkit.surgery.removal import plan_removal, remove
from bnkit.surgery.standardization import Standardization, plan_standardization, standardize
from bnkit.surgery.verification import Proof, SurgeryError

__all__ = [
    "Conversion",
    "Edit",
    "Insertion",
    "LeftAlone",
    "Plan",
    "Proof",
    "Standardization",
    "SurgeryError",
    "accelerate",
    "add",
    "convert",
    "fold",
    "fold_pair",
    "insert",
    "plan_acceleration",
    "plan_addition",
    "plan_conversion",
    "plan_folding",
    "plan_insertion",
    "plan_removal",
    "plan_standardization",
    "rebind",
    "remove",
    "replay",
    "standardize",
]
