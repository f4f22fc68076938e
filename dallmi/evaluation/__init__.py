"""Comparisons: a grid of trials, its result files, the report."""
