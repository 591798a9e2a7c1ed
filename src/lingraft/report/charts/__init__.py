"""The figures of a study, as Vega-Lite through altair: one file for each kind, imported only when it is drawn."""
