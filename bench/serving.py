"""A throw-away `serve`, with files that nothing marks as dev: for benchmarks of the program."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from ironwork_hsm.pkcs11.softhsm import create_token, token_uri
from ironwork_server.access.policy import write_default_policies
from ironwork_server.access.rules import DEFAULT_RULES
from ironwork_server.app import devpki
from ironwork_server.app.devpki import DevCa

DEADLINE_S = 300
POLL_S = 0.005


@dataclass(frozen=True)
class Serving:
    """config: the settings file. env: what its process needs to find SoftHSM. audit: the log."""

    folder: Path
    config: Path
    env: dict[str, str]
    audit: Path

    @classmethod
    def make(cls, folder: Path, origin: str) -> "Serving":
        """Tokens, keys, certificates, policies, a database; no audit folder yet."""
        for name in ("tls", "policy", "db", "hsm", "log-hsm"):
            (folder / name).mkdir(parents=True, mode=0o700)
        devpki.DEV_ORGANIZATION = "Bench"  # `serve` refuses a dev CA
        ca = DevCa.create()
        tls = folder / "tls"
        ca.server_certificate().write(tls / "server.pem", tls / "key.pem")
        (tls / "client-ca.pem").write_bytes(ca.certificate_pem)
        write_default_policies(folder / "policy")
        token = create_token(folder / "hsm", "bench")
        signing = create_token(folder / "log-hsm", "bench-log", config=token.config)
        settings = {
            "listen": "127.0.0.1:0",
            "tls.certificate": str(tls / "server.pem"),
            "tls.private_key": str(tls / "key.pem"),
            "tls.client_ca": str(tls / "client-ca.pem"),
            "identity.trust_domain": "bench.test",
            "policy.folder": str(folder / "policy"),
            "master_key.uris": [token.uri],
            "store.url": f"sqlite:///{folder / 'db' / 'keys.db'}",
            "audit.folder": str(folder / "audit"),
            "audit.origin": origin,
            "audit.signing_key": token_uri("bench-log", "log", signing.pin_file),
        }
        lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
        for rule in DEFAULT_RULES:
            lines += ["[[identity.rules]]", f"path = {json.dumps(rule.path)}"]
            lines += [f"role = {json.dumps(rule.role)}"]
        config = folder / "server.toml"
        config.write_text("\n".join(lines) + "\n")
        made = cls(folder, config, dict(token.env), folder / "audit")
        for command in (["db", "upgrade"], ["audit-key", "create"], ["master-key", "create"]):
            made.run(*command)
        return made

    def run(self, *command: str) -> None:
        """One of the server's commands, to its end."""
        subprocess.run(
            self._command(*command),
            env=os.environ | self.env,
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=DEADLINE_S,
        )

    def take_log(self, folder: Path) -> None:
        """Another log of the same origin in place of this one's: its entries are shared by links,
        its checkpoint, which another key has signed, is left out.
        """
        shutil.rmtree(self.audit, ignore_errors=True)
        self.audit.mkdir(mode=0o700)
        shutil.copytree(folder / "tile", self.audit / "tile", copy_function=os.link)
        for name in ("origin", "id", "state", "snapshot"):
            shutil.copy2(folder / name, self.audit / name)

    @contextmanager
    def started(self, stop: signal.Signals = signal.SIGTERM) -> Iterator[tuple[float, float]]:
        """The seconds from the start of the process to `service.serving`, and its CPU seconds until
        then; ended by this signal.
        """
        log = self.folder / "serve.log"
        with log.open("wb") as out:
            began = time.monotonic()
            process = subprocess.Popen(
                self._command("serve"), env=os.environ | self.env, stdout=out, stderr=out
            )
        try:
            while b'"service.serving"' not in log.read_bytes():
                if process.poll() is not None or time.monotonic() - began > DEADLINE_S:
                    raise SystemExit(log.read_text())
                time.sleep(POLL_S)
            took, used = time.monotonic() - began, psutil.Process(process.pid).cpu_times()
            yield round(took, 2), round(used.user + used.system, 2)
            process.send_signal(stop)
            process.wait(DEADLINE_S)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()

    def _command(self, *command: str) -> list[str]:
        module = [sys.executable, "-m", "ironwork_server"]
        return [*module, *command, "--config", str(self.config)]
