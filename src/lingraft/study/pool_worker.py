"""One of several processes that make stages: `python -m lingraft.study.pool_worker CONNECTION DRIVER`.

It makes one stage after the other, until the driver is gone.
"""

from __future__ import annotations

import faulthandler
import gc
import signal
import sys
from multiprocessing.connection import Connection

from lingraft import stopping


def main() -> None:
    """Make stages until there is nobody to make them for."""
    descriptor, driver = (int(one) for one in sys.argv[1:])
    stopping.end_with(driver)
    faulthandler.enable()  # the stack of a crash goes into the log of the stage
    # Who signals a whole group means the driver. What makes a stage listens, as it has something to save.
    for number in stopping.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    with Connection(descriptor) as connection:
        try:
            path, threads = connection.recv()
            # Last: a file of the user's folder must not stand in for a library.
            sys.path += [one for one in path if one not in sys.path]
            assignment = connection.recv()  # which imports torch: what was sent is read before

            import torch

            from lingraft.study.stage_worker import make_stage

            gc.freeze()  # libraries, which each stage's collection of garbage would go through

            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            while True:
                connection.send(make_stage(assignment))
                assignment = connection.recv()
        except (EOFError, ConnectionError):
            return


if __name__ == "__main__":
    main()
