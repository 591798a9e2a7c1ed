"""`python -m lingraft`, which `torchrun -m lingraft` runs: the command line."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python looks for modules in the user's folder first: a file there must not stand in for a library, nor be run.
    if not sys.flags.safe_path and sys.path and sys.path[0] in ("", str(Path.cwd())):
        del sys.path[0]
    from lingraft.cli.main import main

    main()
