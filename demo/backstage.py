"""The demo's server: `ironwork-server dev` in a process of its own, as a newcomer would run it."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ironwork_client import Profile

START_DEADLINE_S = 60
STOP_DEADLINE_S = 20


@dataclass
class Backstage:
    """A running server. keys: what the Anthropic simulator knows, held in memory only."""

    process: subprocess.Popen[str]
    folder: Path
    target: str
    keys: dict[str, str]

    @property
    def state(self) -> Path:
        """The server's state folder."""
        return self.folder / "state"

    @property
    def log(self) -> Path:
        """Everything that the server wrote to standard error, at level debug."""
        return self.folder / "server.log"

    def profile(self, role: str) -> Profile:
        """The client profile of a role: admin, agent, auditor or stranger."""
        return Profile.load(self.state / "profiles" / f"{role}.toml")

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_DEADLINE_S)


@contextmanager
def backstage() -> Iterator[Backstage]:
    """Start a server in a throw-away folder; both are gone at the end."""
    with TemporaryDirectory(prefix="ironwork-demo-") as name:
        folder = Path(name)
        with (folder / "server.log").open("w") as log:
            process = subprocess.Popen(
                [
                    sys.executable, "-m", "ironwork_server", "dev", "--json",
                    "--state", str(folder / "state"),
                    "--listen", "127.0.0.1:0", "--log-level", "debug",
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )  # fmt: skip
        try:
            yield _ready(process, folder)
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(STOP_DEADLINE_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _ready(process: subprocess.Popen[str], folder: Path) -> Backstage:
    if process.stdout is None:
        raise TypeError("standard output is a pipe")
    line = process.stdout.readline()
    if not line:
        process.wait(START_DEADLINE_S)
        raise SystemExit("The server did not start:\n" + (folder / "server.log").read_text())
    ready = json.loads(line)
    return Backstage(process, folder, ready["target"], ready["simulator_keys"])
