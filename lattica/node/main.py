"""The node process: read the command line, start the zygote, then everything else.

    embedded  --attach-fd FD           one driver, connected already; the node ends with it
    guest     --attach-fd, --ticket-fd likewise, in the mesh of a ticket
    daemon    --data-dir DIR           listens on a unix socket, and to other nodes; says on --ready-fd how it went;
                                       reads a ticket from --ticket-fd; ends on SIGTERM

Either takes --hide '["DIR", ...]', folders that its workers may not see; a daemon hides its own in any case.
An embedded node starts its zygote before anything slow is imported, so that it imports what workers need while the node
imports what the node needs: together they are most of the time from `init` to the first task.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` takes 1 ms, and the zygote's start is what `init` waits for
import os
import sys

from lattica.node.spawn import NOTHING_HIDDEN, ROOT, spawn_zygote


def main(argv: list[str], paths: str = "") -> None:
    """Run a node until it ends. argv: pairs of option and value. paths: JSON list of import paths for zygotes."""
    paths = paths or f'["{ROOT}"]'
    zygote = None
    for option in ("--attach-fd", "--ready-fd", "--ticket-fd"):
        if option in argv:
            os.set_inheritable(int(argv[argv.index(option) + 1]), False)
    if "--attach-fd" not in argv or "--ticket-fd" in argv:
        _signal.pthread_sigmask(_signal.SIG_BLOCK, [_signal.SIGTERM])  # it waits until the loop takes it
    else:
        preload = argv[argv.index("--preload") + 1] if "--preload" in argv else ""
        hidden = _fingerprints(argv[argv.index("--hide") + 1]) if "--hide" in argv else NOTHING_HIDDEN
        zygote = spawn_zygote(sys.executable, paths, [name for name in preload.split(",") if name], hidden)

    from lattica.node.run import parse_options, run_daemon, run_embedded, run_guest

    options = parse_options(argv)
    if zygote is not None:
        run_embedded(options, paths, zygote)
    elif options.attach_fd is not None:
        run_guest(options, paths)
    else:
        run_daemon(options, paths)


def _fingerprints(folders: str) -> str:
    import json

    from lattica.node.confine import fingerprints

    return fingerprints(json.loads(folders))


if __name__ == "__main__":
    main(sys.argv[1:])
