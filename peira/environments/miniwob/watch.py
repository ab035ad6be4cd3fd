"""Stands between Python and a browser: `python watch.py FOLDER COMMAND...` runs the command in a group of its own.

When its standard input closes or its parent is gone, however that came about, everything the command has started is
killed and the folder removed. Run as a script, with the standard library alone, so that it starts in no time.
"""

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys

BECOME_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: orphans of the command become children of this process


def main() -> None:
    parent = os.getppid()
    folder, *command = sys.argv[1:]
    ctypes.CDLL(None).prctl(BECOME_SUBREAPER, 1, 0, 0, 0)
    try:
        leader = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        os.close(1)  # so that who reads what the command says sees its end
        # A process forked off the parent would keep the pipe open beyond the parent's end: look at both.
        while not select.select([sys.stdin], [], [], 0.5)[0] and os.getppid() == parent:
            pass
        # The leader has not been waited for, even where it has ended: the number is still its own.
        os.killpg(leader.pid, signal.SIGKILL)
        while True:
            try:
                os.wait()
            except ChildProcessError:
                break
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
