"""Changes to models, each planned, applied to a copy and checked: put batch norm in."""

from bnkit.surgery.addition import add, plan_addition
from bnkit.surgery.plan import Edit, LeftAlone, Plan
from bnkit.surgery.promise import Proof, SurgeryError

__all__ = ["Edit", "LeftAlone", "Plan", "Proof", "SurgeryError", "add", "plan_addition"]
