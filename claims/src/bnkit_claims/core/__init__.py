"""How a claim about batch norm is written down, measured, and judged."""
