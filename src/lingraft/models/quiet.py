"""Keep from the user what libraries say when they are imported and what means nothing to who uses lingraft.

PEFT imports torchao and bitsandbytes where they are installed, and each warns of kernels of other devices.
"""

from __future__ import annotations

import logging

_MEANINGLESS = {
    "torchao": "Failed to load",
    "torch.utils._pytree": "is an Enum subclass and is now natively supported",
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
}


class _Without(logging.Filter):
    """Lets all records pass but those of one message."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record says something else."""
        return self.name not in record.getMessage()


def silence_imports() -> None:
    """Drop the messages above, and no other, for as long as the process runs."""
    for logger, text in _MEANINGLESS.items():
        logging.getLogger(logger).addFilter(_Without(text))
