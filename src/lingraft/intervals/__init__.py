"""Confidence intervals of macro means over clusters, paired differences, corrections for multiple testing."""
