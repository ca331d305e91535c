"""The table of all claims, in the order in which they are listed."""

from typing import Any

from bnkit.lab.claiming.claim import Claim
from bnkit.lab.claims import learning_rates

CLAIMS: tuple[Claim[Any], ...] = (learning_rates.CLAIM,)
