"""Figures: every function returns a ``matplotlib.figure.Figure`` and shows or saves nothing."""
