"""`master-key rotate|rewrap|retire` and `break-glass drop`, killed (SIGKILL) wherever they are:
every row opens all the while, the next run completes, and the log says what was left.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from fixtures import killed_commands
from fixtures.journal_events import entries
from fixtures.processes import environment
from fixtures.production import Production
from ironwork_audit.source import FolderSource
from ironwork_audit.tlog import VerifierKey
from ironwork_audit.verify import verify
from ironwork_hsm.pkcs11 import softhsm
from ironwork_server.custody.break_glass import RecoveryKey

ROWS = 6
BATCH = 2
SO_PIN = "pins/so"
SLOW = [pytest.mark.slow, pytest.mark.timeout(3600)]
Step = tuple[str, str, int]


@dataclass(frozen=True)
class Case:
    """A command, what must be done before it, and what the store says once it is done: how many
    rows each version wraps, and how many copies there are.
    """

    arguments: tuple[str, ...]
    before: tuple[tuple[str, ...], ...]
    rows: tuple[tuple[int, int], ...]
    copies: int = ROWS + 1
    on: bool = True


ROTATE, REWRAP = ("master-key", "rotate"), ("master-key", "rewrap")
RETIRE = ("master-key", "retire", "1")
CASES = {
    "rotate": Case(ROTATE, (), ((1, ROWS),)),
    "rewrap": Case(REWRAP, (ROTATE,), ((2, ROWS),)),
    "retire": Case(RETIRE, (ROTATE, REWRAP), ((2, ROWS),)),
    "destroy": Case(
        (*RETIRE, "--destroy", "--admin-pin-source", SO_PIN), (ROTATE, REWRAP), ((2, ROWS),)
    ),
    "drop": Case(("break-glass", "drop"), (), ((1, ROWS),), copies=0, on=False),
}


class Scene:
    """An installation in a folder of its own, which can be put back as it was."""

    def __init__(self, production: Production, process: subprocess.Popen[str]) -> None:
        self._production = production
        self._process = process
        self.folder = production.folder / "all"
        self.url = f"sqlite:///{self.folder}/keys.db"
        self.uri = softhsm.token_uri("commands", "master", self.folder / "pins/master")
        self.seeded = ""

    def ask(self, *arguments: str, **order: Any) -> tuple[int, str, float]:
        """One process to its end; its exit code, what it said, and its seconds."""
        streams = self._process.stdin, self._process.stdout
        send, receive = (stream for stream in streams if stream is not None)
        send.write(json.dumps({"arguments": arguments, **order}) + "\n")
        send.flush()
        code, said, seconds = json.loads(receive.readline())
        return code, said, seconds

    def done(self, *arguments: str, **order: Any) -> str:
        code, said, _ = self.ask(*arguments, **order)
        assert code == 0, said
        return said

    def command(self, arguments: tuple[str, ...]) -> list[str]:
        pin = f"file:{self.folder / SO_PIN}"
        return [
            *(pin if argument == SO_PIN else argument for argument in arguments),
            *("--config", str(self._production.folder / "server.toml")),
        ]

    def make(self) -> None:
        """Tokens, keys, a database with rows, and copies for a break-glass recipient."""
        (self.folder / "pins").mkdir(parents=True, mode=0o700)
        config = softhsm.write_config(self.folder / "hsm")
        for label in ("commands", "signing"):
            pins = [self.folder / "pins" / name for name in (label, f"{label}-so")]
            if label == "commands":
                pins = [self.folder / "pins" / "master", self.folder / SO_PIN]
            make_token(config, label, *pins)
        recipient = self.folder / "recipient.pem"
        recipient.write_bytes(RecoveryKey.generate().recipient.pem)
        self._production.settings |= {
            "master_key": {"uris": [self.uri]},
            "store": {"url": self.url},
            "audit": {
                "folder": str(self.folder / "audit"),
                "origin": "keys.acme.example/one",
                "signing_key": softhsm.token_uri(
                    "signing", "log", self.folder / "pins" / "signing"
                ),
            },
        }
        self.configure(recipient=True)
        for arguments in (("db", "upgrade"), ("audit-key", "create"), ("master-key", "create")):
            self.done(*self.command(arguments))
        self.seeded = self.done("seed", self.url, self.uri, str(ROWS))
        self.done(*self.command(("master-key", "rewrap")))
        self.keep("made")

    def configure(self, *, recipient: bool) -> None:
        chosen = {"recipient": str(self.folder / "recipient.pem")} if recipient else {}
        self._production.settings["break_glass"] = chosen
        self._production.write()

    def keep(self, name: str) -> None:
        shutil.copytree(self.folder, self._production.folder / name)

    def put_back(self, name: str) -> None:
        shutil.rmtree(self.folder)
        shutil.copytree(self._production.folder / name, self.folder)

    def check(self) -> tuple[Mapping[int, int], int]:
        """Every row and the pepper open; how many rows each version wraps, how many copies."""
        wraps, copies = json.loads(self.done("check", self.url, self.uri, self.seeded))
        return {version: rows for version, rows, _ in wraps}, sum(copies.values())

    def prepare(self, case: Case) -> None:
        """The state from which the command starts, kept under its name."""
        self.put_back("made")
        self.configure(recipient=case.on)
        for arguments in case.before:
            self.done(*self.command(arguments))
        shutil.rmtree(self._production.folder / "start", ignore_errors=True)
        self.keep("start")

    def steps(self, case: Case) -> tuple[list[Step], float]:
        """All steps of the command, in order, and how long it takes."""
        self.put_back("start")
        trace = self._production.folder / "trace"
        trace.unlink(missing_ok=True)
        code, said, _ = self.ask(*self.command(case.arguments), trace=str(trace))
        assert code == 0, said
        self.put_back("start")
        _, _, seconds = self.ask(*self.command(case.arguments))
        return [tuple(json.loads(line)) for line in trace.read_text().splitlines()], seconds

    def survives(self, case: Case, **kill: Any) -> bool:
        """The command, killed, and what must be true then and after the next run. Whether it was
        killed before its end.
        """
        self.put_back("start")
        code, said, _ = self.ask(*self.command(case.arguments), **kill)
        assert code in {-9, 0}, said
        self.put_back_tokens()
        rows, _ = self.check()
        assert sum(rows.values()) == ROWS
        self.done(*self.command(case.arguments))
        assert self.check() == (dict(case.rows), case.copies)
        self.verify_log()
        return code == -9

    def put_back_tokens(self) -> None:
        """SoftHSM cuts a token's own file (not its keys') at each login and writes it again: a
        kill just there loses the token, which no HSM does.
        """
        start = self._production.folder / "start"
        for token in start.glob("hsm/tokens/*/token.object"):
            shutil.copy(token, self.folder / token.relative_to(start))

    def verify_log(self) -> None:
        """It verifies; what is without an outcome is of one moment, and marked."""
        key = self.done(*self.command(("audit-key", "show", "--commands")))
        log = self.folder / "audit-commands"
        verdict = verify(FolderSource(log), VerifierKey.parse(key.strip()))
        assert verdict.finding is None
        events = [one.event for one in entries(log)]
        marks = [one for one in events if one.operation == "journal.unfinished"]
        assert verdict.unfinished == sum(int(one.details["count"]) for one in marks)
        # A batch's intents, and a checkpoint's signing.
        assert verdict.unfinished <= BATCH + 1
        assert len(marks) <= 1


def make_token(config: Path, label: str, pin: Path, so_pin: Path) -> None:
    """A new token, by SoftHSM's own program."""
    pins = [softhsm.write_pin(path) for path in (pin, so_pin)]
    subprocess.run(
        [
            *("softhsm2-util", "--init-token", "--free", "--label", label),
            *("--pin", pins[0], "--so-pin", pins[1]),
        ],
        check=True,
        timeout=60,
        stdout=subprocess.PIPE,
        env=os.environ | softhsm.config_environment(config),
    )


@pytest.fixture
def scene(production: Production) -> Iterator[Scene]:
    tests = Path(killed_commands.__file__).parents[1]
    paths = os.pathsep.join(filter(None, (str(tests), os.environ.get("PYTHONPATH"))))
    hsm = softhsm.config_environment(production.folder / "all" / "hsm" / "softhsm2.conf")
    process = subprocess.Popen(
        [sys.executable, "-m", "fixtures.killed_commands", str(production.folder / "said")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment({"PYTHONPATH": paths, **hsm}),
    )
    scene = Scene(production, process)
    try:
        scene.make()
        yield scene
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            close(stream)


def close(stream: IO[str] | None) -> None:
    assert stream is not None
    stream.close()


def middle(steps: list[Step]) -> list[Step]:
    """Of each kind of step the one in the middle."""
    kinds: dict[tuple[str, str], list[Step]] = {}
    for name, when, number in steps:
        kinds.setdefault((name, when), []).append((name, when, number))
    return [found[len(found) // 2] for found in kinds.values()]


def test_a_rewrap_that_is_killed(scene: Scene) -> None:
    """Around an intent's sync, around the store's commit, and between the wrap and the swap."""
    case = CASES["rewrap"]
    scene.prepare(case)
    steps, _ = scene.steps(case)
    wanted = {("fdatasync", "before"), ("fdatasync", "after"), ("wrap", "after")}
    wanted |= {("commit", "before"), ("commit", "after")}
    chosen = [step for step in middle(steps) if step[:2] in wanted]
    assert len(chosen) == len(wanted)
    for step in chosen:
        assert scene.survives(case, kill=step), step


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", CASES)
def test_a_command_that_is_killed_anywhere(scene: Scene, name: str) -> None:
    """At the first, the middle and the last of each kind of step, before and after it, and 40 times
    at a random moment.
    """
    case = CASES[name]
    scene.prepare(case)
    steps, seconds = scene.steps(case)
    kinds = {step[:2] for step in steps}
    ends = [next(step for step in steps if step[:2] == kind) for kind in sorted(kinds)]
    ends += [next(step for step in reversed(steps) if step[:2] == kind) for kind in sorted(kinds)]
    for step in dict.fromkeys(ends + middle(steps)):
        assert scene.survives(case, kill=step), step
    chance = random.Random(20261123)
    killed = 0
    for _ in range(400):
        killed += scene.survives(case, after_s=chance.uniform(0.0, seconds))
        if killed == 40:
            return
    pytest.fail("the command ends before it is killed")
