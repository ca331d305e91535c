"""The published experiments with batch norm: their settings, their figures, and how to run them."""
