"""What is said of batch norm, measured with bnkit: claims, and published experiments run here."""

__version__ = "0.1.0"
