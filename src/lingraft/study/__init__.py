"""Studies: a grid of phases x strategies x seeds, run as cached stages in a run folder."""
