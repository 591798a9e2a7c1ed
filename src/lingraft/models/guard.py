"""Ends what a process started when that process has ended: `python -m lingraft.models.guard LAUNCHER GROUP`.

Who is killed can end nothing any more, and a server that goes on keeps its port and the memory of its card.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress

from lingraft import stopping

_SECONDS_BETWEEN_LOOKS = 0.5


def main() -> None:
    """Wait for the end of LAUNCHER, this process's parent, and kill all of the process group GROUP."""
    launcher, group = (int(one) for one in sys.argv[1:])
    for number in stopping.SIGNALS:  # the launcher's to heed
        signal.signal(number, signal.SIG_IGN)
    while os.getppid() == launcher:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
