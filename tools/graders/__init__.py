"""Fits the heads of the English graders: `python -m tools.graders`."""
