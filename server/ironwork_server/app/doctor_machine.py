"""Doctor: the machine and the process: swap, core dumps, memory reads, the allocator, versions."""

import importlib.metadata
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ironwork_server.app.allocator import is_glibc
from ironwork_server.app.doctor_report import Finding, fail, ok, warn
from ironwork_server.app.settings import Settings
from ironwork_server.app.startup import StartupError, refuse_speaking_environment

_SHOWN = ("grpcio", "cryptography", "python-pkcs11", "cedarpy", "SQLAlchemy")


@dataclass(frozen=True, slots=True)
class Machine:
    """What is looked at. proc: proc(5)'s mount. pid: a server that is running, None for none."""

    proc: Path = Path("/proc")
    pid: int | None = None
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    uid: int = field(default_factory=os.geteuid)


def environment(machine: Machine) -> Iterator[Finding]:
    """Variables that make libraries speak, and who runs this."""
    try:
        refuse_speaking_environment(machine.environ)
        yield ok("environment", "no variable that makes libraries print what they handle")
    except StartupError as error:
        yield fail("environment", str(error), "Unset it.")
    if machine.uid == 0:
        mend = "Run the server, and doctor, as a user of its own."
        yield warn("user", "this runs as root", mend)
    else:
        yield ok("user", f"user {machine.uid}")


def memory(settings: Settings, machine: Machine) -> Iterator[Finding]:
    """What could carry keys out of the process' memory."""
    if not settings.memory.overwrite_freed:
        mend = "memory.overwrite_freed = true"
        yield warn("memory.allocator", "freed memory is not overwritten: told off", mend)
    elif not is_glibc():
        mend = "Run it on glibc."
        yield warn("memory.allocator", "freed memory is not overwritten: not glibc", mend)
    else:
        yield ok("memory.allocator", "freed memory will be overwritten (glibc)")
    swaps = _lines(machine.proc / "swaps")[1:]
    if swaps:
        mend = "swapoff -a, or encrypt the swap with a key that is made anew at each boot."
        yield warn("memory.swap", f"{len(swaps)} in use: memory can reach a disk", mend)
    else:
        yield ok("memory.swap", "none")
    scope = _first(machine.proc / "sys/kernel/yama/ptrace_scope")
    if scope == "0":
        mend = "sysctl kernel.yama.ptrace_scope=1 (the server closes its own memory as well)"
        yield warn("memory.ptrace", "processes of one user may trace each other", mend)
    else:
        yield ok("memory.ptrace", f"ptrace_scope {scope or 'not there'}; the server closes its own")
    if machine.pid is not None:
        yield from _process(machine.proc / str(machine.pid), machine.pid)


def _process(place: Path, pid: int) -> Iterator[Finding]:
    """A running server: what its entry in proc says."""
    limits = _lines(place / "limits")
    if not limits:
        yield fail("server", f"there is no process {pid} that can be looked at", "Give its pid.")
        return
    core = [line.split()[4:6] for line in limits if line.startswith("Max core file size")]
    if core != [["0", "0"]]:
        yield fail("server.core", f"process {pid} may dump its memory", "Start it by `serve`.")
    else:
        yield ok("server.core", "no core dumps")
    status = {
        name: value.strip()
        for name, _, value in (line.partition(":") for line in _lines(place / "status"))
    }
    swapped = status.get("VmSwap", "0 kB")
    if swapped != "0 kB":
        yield fail("server.swap", f"{swapped} of its memory are in swap", "swapoff -a")
    else:
        yield ok("server.swap", "nothing of it is in swap")
    if status.get("TracerPid", "0") != "0":
        yield fail("server.traced", f"process {status['TracerPid']} traces it", "Find out who.")
    else:
        yield ok("server.traced", "nobody traces it")


def versions() -> Iterator[Finding]:
    """What runs here."""
    shown = [f"Python {platform.python_version()}"]
    for name in _SHOWN:
        try:
            shown.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            yield fail("versions", f"{name} is not installed", "Install the locked requirements.")
            return
    yield ok("versions", ", ".join(shown))


def _first(path: Path) -> str:
    lines = _lines(path)
    return lines[0].strip() if lines else ""


def _lines(path: Path) -> list[str]:
    """Empty where there is no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
