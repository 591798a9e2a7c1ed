"""How much of an evaluation's items stands in the training rows."""
