"""One of several processes that answer batches: `python -m lingraft.models.worker CONNECTION LAUNCHER`.

It loads the model that it is sent first, then answers one batch after the other. What it prints goes into a log.
"""

from __future__ import annotations

import signal
import sys
from multiprocessing.connection import Connection

import torch

from lingraft import stopping
from lingraft.errors import LingraftError
from lingraft.models.answering import Held
from lingraft.models.workers import Answered, Failed, Noted, OutOfMemory, Ready


def main() -> None:
    """Answer until there is nobody to answer to."""
    descriptor, launcher = (int(one) for one in sys.argv[1:])
    stopping.end_with(launcher)
    # Who signals a whole group means the launcher, which alone decides that nothing is answered any more.
    for number in stopping.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    with Connection(descriptor) as connection:
        try:
            files, device = connection.recv()
            if device.type != "cpu":
                torch.accelerator.set_device_index(device.index)
            model, tokenizer = files.load()
            held = Held(model.to(device), tokenizer, lambda message: connection.send(Noted(message)))
            connection.send(Ready())
            while True:
                batch = connection.recv()
                connection.send(Answered(batch(held)))
        except EOFError:
            return
        except (torch.OutOfMemoryError, MemoryError):  # a death: another one, with empty memory, may answer
            connection.send(OutOfMemory())
            raise
        except LingraftError as error:
            connection.send(Failed(type(error).__name__, str(error)))
        except Exception as error:
            message = f"a process that answers failed with {type(error).__name__}: {error}"
            connection.send(Failed(LingraftError.__name__, message))
            raise  # its stack goes into the log


if __name__ == "__main__":
    main()
