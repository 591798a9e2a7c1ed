"""Training one phase: the loss, the Trainer and the loop around it."""

import lingraft.models  # noqa: F401 - before torchao, which it keeps silent
