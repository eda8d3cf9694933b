"""`python services/cli/child.py NICE COMMAND…`: becomes the command, politely, and dies with whoever started it.

A process of its own, because Python code between fork and exec is not safe in a parent that has gRPC's threads.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Does not return."""
    if sys.platform == "linux":
        # A supervisor that is killed leaves no orphans behind.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.nice(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - the command comes from the supervisor


if __name__ == "__main__":
    main()
