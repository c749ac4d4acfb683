"""What the process denies to others of its own machine: core dumps and reads of its memory."""

import ctypes
import resource

from ironwork_server.app.startup import StartupError

# prctl(2)
PR_SET_DUMPABLE = 4


def deny_memory_reads() -> None:
    """No core dumps; ptrace and /proc/PID/mem are closed to the same user. Errors: StartupError."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise StartupError("The kernel refuses PR_SET_DUMPABLE: memory could be read by others.")
