"""The node process: read the command line, start the zygote, then everything else.

The zygote is started before anything slow is imported, so that it imports what workers need while the node imports what
the node needs: together they are most of the time from `init` to the first task.

    embedded  --attach-fd FD           one driver, connected already; the node ends with it
    daemon    --data-dir DIR           listens on a unix socket; says on --ready-fd how it went; ends on SIGTERM
"""

from __future__ import annotations

import os
import sys

from lattica.node.spawn import ROOT, spawn_zygote


def main(argv: list[str], paths: str = "") -> None:
    """Run a node until it ends. argv: pairs of option and value. paths: JSON list of import paths for zygotes."""
    options = dict(zip(argv[::2], argv[1::2]))
    if "--attach-fd" in options:
        os.set_inheritable(int(options["--attach-fd"]), False)
    preload = [name for name in options.get("--preload", "").split(",") if name]
    paths = paths or f'["{ROOT}"]'
    zygote = spawn_zygote(sys.executable, paths, preload)

    from lattica.node.run import run

    run(options, paths, zygote)


if __name__ == "__main__":
    main(sys.argv[1:])
