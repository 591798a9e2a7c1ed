"""95 % confidence intervals of macro means over clusters, paired differences, corrections for multiple testing.

An interval is made in `confidence_intervals.bounds`, of the clusters that `clusters` arranges. Callers ask `macro_mean`
for that of scores or of their paired differences, and `multiple_testing` for the p-values of many differences.
"""
