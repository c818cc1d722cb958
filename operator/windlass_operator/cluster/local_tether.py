"""Tie a child to its parent, then become the real program: `python -I -S local_tether.py PARENT_PID PROGRAM
ARGUMENT...`.

On Linux the kernel kills the child when its parent dies, even by SIGKILL, so nothing is left behind. Done in a
program of its own
rather than between fork and exec, where a process with threads may run next to no code safely. Elsewhere this only
starts the program.
Standard library only: it runs before any environment is set up.
"""

import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Ask for the signal, make sure that the parent did not die before that, and go on as the program."""
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):
            sys.exit("parent is gone")
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
