"""`Monitor`: what the batch norms of a model do while it trains."""

from bnkit.monitoring.monitor import Monitor
from bnkit.monitoring.records import NonFinite, Record

__all__ = ["Monitor", "NonFinite", "Record"]
