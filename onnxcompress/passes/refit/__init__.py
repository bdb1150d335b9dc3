"""Refit: fit every layer by least squares to the original's outputs (refit.py: which; rows.py, goals.py: on what; solver.py: how)."""
