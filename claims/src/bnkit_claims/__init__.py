"""Claims about batch norm, measured with bnkit, and published experiments, run here."""

__version__ = "0.2.0"
