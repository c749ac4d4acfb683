"""Memory that is overwritten when it is freed (ADR 0013).

gRPC, protobuf and python-pkcs11 hold copies of keys in immutable objects that Python cannot wipe.
The C library's allocator can overwrite what is freed, but reads its settings only when a program
begins: so the process starts itself once more, by execve(2), with them in its environment. Process
id, arguments, inherited files and the rest of the environment stay as they are.
"""

import ctypes
import logging
import os
import sys
from collections.abc import Mapping
from enum import Enum
from typing import NoReturn

from ironwork_server.app.startup import StartupError

log = logging.getLogger(__name__)

# CPython's own pools would keep freed objects; with this every object is the C library's.
PYTHON_ALLOCATOR = ("PYTHONMALLOC", "malloc")
TUNABLES = "GLIBC_TUNABLES"
# perturb: memory is filled with the byte when it is freed, and with its complement when it is
# handed out (mallopt(3), M_PERTURB). The threads' caches would pass memory by that.
# mmap_threshold: what is larger is the kernel's again as soon as it is freed. Left alone, glibc
# raises it to 32 MiB with the first long message, and then keeps what a flood of them took.
OURS = {
    "glibc.malloc.perturb": "165",
    "glibc.malloc.tcache_count": "0",
    "glibc.malloc.mmap_threshold": "1048576",
}
# Says that this start is the second one; never left for children. No setting has such a name.
MARK = "_IRONWORK_RESTARTED"

_HANDED_OUT = 165 ^ 0xFF
_PROBED_SIZES = (24, 104, 1000)


class Allocator(Enum):
    """What becomes of freed memory; the value is the log's reason."""

    OVERWRITES = "overwrites"
    TOLD_OFF = "memory.overwrite_freed is off"
    NOT_GLIBC = "the C library is not glibc, whose allocator can overwrite"
    NOT_OURS = "this is not a program of its own, so it was not started anew"


def overwrite_freed(*, wanted: bool, is_program: bool) -> Allocator:
    """Have freed memory overwritten, starting this process anew where need be: then this does not
    return. To be called before files are opened, threads started or secrets read.

    wanted: the setting. is_program: whether the process' command line led here, so that running
    it again does the same. Errors: StartupError, where the settings have no effect.
    """
    restarted = os.environ.pop(MARK, None) is not None
    if not wanted:
        return Allocator.TOLD_OFF
    if not is_glibc():
        return Allocator.NOT_GLIBC
    if is_in_force():
        return Allocator.OVERWRITES
    if not is_program:
        return Allocator.NOT_OURS
    if restarted:
        raise StartupError(
            "Freed memory is not overwritten although the process was started with"
            f" {PYTHON_ALLOCATOR[0]} and {TUNABLES}: another allocator is preloaded (LD_PRELOAD),"
            " or something removes the variables. Mend that, or set memory.overwrite_freed ="
            " false (dev: --plain-allocator) to go without."
        )
    return _restart()


def tell(allocator: Allocator) -> None:
    """Say in the log what becomes of freed memory."""
    if allocator is Allocator.OVERWRITES:
        log.info("memory.overwrites_freed")
    else:
        log.warning("memory.keeps_freed", extra={"reason": allocator.value})


def is_glibc() -> bool:
    """Whether the C library is glibc; musl's allocator has no such settings."""
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc ")
    except (ValueError, OSError):
        return False


def is_in_force() -> bool:
    """Whether it really happens, by trying: CPython has no pools of its own, and a block that was
    freed and is handed out again comes filled, for sizes of each kind of bin.
    """
    if sys.getallocatedblocks() != 0:
        return False
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.free.restype = None
    return all(_comes_filled(libc, size) for size in _PROBED_SIZES)


def _comes_filled(libc: ctypes.CDLL, size: int) -> bool:
    used = libc.malloc(size)
    ctypes.memset(used, 0, size)
    libc.free(used)
    again = libc.malloc(size)
    try:
        return ctypes.string_at(again, size) == bytes([_HANDED_OUT]) * size
    finally:
        libc.free(again)


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for the second start; other tunables of glibc's stay."""
    name, value = PYTHON_ALLOCATOR
    tunables = _others(environ) + [f"{key}={setting}" for key, setting in OURS.items()]
    return {**environ, name: value, TUNABLES: ":".join(tunables), MARK: "1"}


def plain_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without these settings, for a child that holds no secret of ours."""
    plain = {
        name: value
        for name, value in environ.items()
        if name not in {PYTHON_ALLOCATOR[0], TUNABLES, MARK}
    }
    others = _others(environ)
    return plain | ({TUNABLES: ":".join(others)} if others else {})


def _others(environ: Mapping[str, str]) -> list[str]:
    tunables = environ.get(TUNABLES, "").split(":")
    return [tunable for tunable in tunables if tunable and tunable.partition("=")[0] not in OURS]


def _restart() -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    # The interpreter by its full path also as argument 0: from that it finds its environment.
    arguments = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, arguments, environment(os.environ))  # noqa: S606  no shell is meant
