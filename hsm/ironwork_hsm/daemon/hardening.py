"""What the HSM process and its children deny to others of their machine, and do to their memory.

Data keys pass through both in objects that Python cannot wipe. So they run with the C library's
allocator set to overwrite what is freed, as ironwork-server does (its ADR 0013 has the figures).
"""

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Mapping
from typing import Final

from ironwork_hsm.environment import refused_in
from ironwork_hsm.interface import ConfigurationError

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_TUNABLES: Final = "GLIBC_TUNABLES"
_OURS: Final = {"glibc.malloc.perturb": "165", "glibc.malloc.tcache_count": "0"}
_MARK: Final = "_IRONWORK_HSMD_RESTARTED"


def deny_memory_reads() -> None:
    """No core dumps; /proc/PID/mem closed to the same user. Raises ConfigurationError."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)


def refuse_speaking_environment(environ: Mapping[str, str]) -> None:
    """Raises ConfigurationError in an environment in which a library below prints PINs or data
    keys, or writes them into a file, or in which TLS is weaker.
    """
    why = refused_in(environ)
    if why is not None:
        raise ConfigurationError(why)


def end_with_parent(parent: int) -> None:
    """Be killed when the parent process ends, however it ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def overwriting(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment in which a program's freed memory is overwritten; other tunables stay."""
    others = [
        tunable
        for tunable in environ.get(_TUNABLES, "").split(":")
        if tunable and tunable.partition("=")[0] not in _OURS
    ]
    tunables = others + [f"{name}={value}" for name, value in _OURS.items()]
    return {**environ, "PYTHONMALLOC": "malloc", _TUNABLES: ":".join(tunables)}


def overwrite_freed() -> None:
    """Start this program anew with such an environment, where it has not got it: then this does not
    return. To be called before anything is opened. Raises ConfigurationError.
    """
    restarted = os.environ.pop(_MARK, None) is not None
    wanted = overwriting(os.environ)
    if wanted == dict(os.environ) and sys.getallocatedblocks() == 0:
        return
    if restarted:
        raise ConfigurationError(
            "Freed memory is not overwritten although the process was started for it: another"
            " allocator is preloaded (LD_PRELOAD), or something removes PYTHONMALLOC or"
            f" {_TUNABLES}. Mend that, or set overwrite_freed = false to go without."
        )
    sys.stdout.flush()
    sys.stderr.flush()
    arguments = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, arguments, {**wanted, _MARK: "1"})  # noqa: S606  no shell is meant


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise ConfigurationError("The kernel refuses to protect this process' memory (prctl).")
