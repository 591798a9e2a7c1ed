"""Training one phase: the loss, the Trainer and the loop around it."""
