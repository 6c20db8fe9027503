"""A search from its plan to its summary, as one job of a Ray cluster."""
