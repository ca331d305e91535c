"""Changes to models, each planned, applied to a copy and checked: put batch norm in."""

from bnkit.surgery.acceleration import accelerate, plan_acceleration
from bnkit.surgery.addition import add, plan_addition
from bnkit.surgery.insertion import Insertion, insert, plan_insertion
from bnkit.surgery.plan import Edit, LeftAlone, Plan
from bnkit.surgery.promise import Proof, SurgeryError
from bnkit.surgery.structure import replay

__all__ = [
    "Edit",
    "Insertion",
    "LeftAlone",
    "Plan",
    "Proof",
    "SurgeryError",
    "accelerate",
    "add",
    "insert",
    "plan_acceleration",
    "plan_addition",
    "plan_insertion",
    "replay",
]
