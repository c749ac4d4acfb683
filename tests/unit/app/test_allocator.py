"""The process that starts itself anew so that freed memory is overwritten."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures.production import Production
from ironwork_server.app import allocator
from ironwork_server.app.allocator import Allocator, overwrite_freed
from ironwork_server.app.startup import StartupError
from ironwork_server.cli import dev as dev_module
from ironwork_server.cli import serve as serve_module
from ironwork_server.cli.main import main

PROGRAM = """
import json, os, sys
from ironwork_server.app.allocator import overwrite_freed
print("begins", flush=True)
result = overwrite_freed(wanted=True, is_program=True)
print(json.dumps({
    "result": result.name, "arguments": sys.argv, "pid": os.getpid(), "flags": sys.flags.utf8_mode,
    "environment": dict(os.environ), "read": os.read(int(sys.argv[1]), 9).decode(),
    "prefix": sys.prefix,
}))
"""


def start(
    *arguments: str, descriptors: tuple[int, ...] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run PROGRAM."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONMALLOC"}
    return subprocess.run(
        [sys.executable, "-X", "utf8", "-c", PROGRAM, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={**kept, **variables},
        pass_fds=descriptors,
    )


def test_it_starts_anew_once_and_stays_what_it_was() -> None:
    """Started once more with the same id, arguments, interpreter's options, inherited files and
    environment, other tunables too; then freed memory is overwritten. The mark is gone.
    """
    ours, theirs = os.pipe()
    os.write(theirs, b"inherited")
    try:
        ended = start(
            str(ours), "an argument", "--x=*",
            descriptors=(ours,), GLIBC_TUNABLES="glibc.malloc.arena_max=3", LEFT="as it was",
        )  # fmt: skip
    finally:
        os.close(ours)
        os.close(theirs)
    assert ended.returncode == 0, ended.stderr
    *begins, said = ended.stdout.splitlines()
    assert begins == ["begins", "begins"]
    now = json.loads(said)
    assert now["result"] == "OVERWRITES"
    assert now["arguments"] == ["-c", str(ours), "an argument", "--x=*"]
    assert (now["flags"], now["read"], now["prefix"]) == (1, "inherited", sys.prefix)
    environment = now["environment"]
    assert environment["LEFT"] == "as it was"
    assert environment["PYTHONMALLOC"] == "malloc"
    assert environment["GLIBC_TUNABLES"].split(":") == [
        "glibc.malloc.arena_max=3", "glibc.malloc.perturb=165", "glibc.malloc.tcache_count=0",
        "glibc.malloc.mmap_threshold=1048576",
    ]  # fmt: skip
    assert allocator.MARK not in environment


def test_where_it_has_no_effect_it_does_not_start_again_and_again() -> None:
    """A second start that finds freed memory not overwritten says so and ends."""
    marked = {allocator.MARK: "1"}
    ended = start("0", **marked)
    assert ended.returncode == 1
    assert ended.stdout == "begins\n"
    assert "StartupError: Freed memory is not overwritten although" in ended.stderr
    assert "memory.overwrite_freed = false" in ended.stderr


@pytest.mark.parametrize("missing", ["PYTHONMALLOC", "perturb", "tcache_count"])
def test_each_of_the_settings_counts(missing: str) -> None:
    """Whether it is in force is found out by trying: without any one of the three it is not."""
    environment = allocator.environment(os.environ)
    environment.pop(allocator.MARK)
    tunables = environment["GLIBC_TUNABLES"].split(":")
    environment["GLIBC_TUNABLES"] = ":".join(each for each in tunables if missing not in each)
    environment.pop(missing, None)
    code = "from ironwork_server.app import allocator; print(allocator.is_in_force())"
    answer = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )
    assert answer.stdout == "False\n"


@pytest.fixture
def no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process, the tests', never starts anew; it has a plain allocator."""

    def refuse(*_: object) -> None:
        raise AssertionError("it wanted to start anew")

    monkeypatch.setattr(os, "execve", refuse)
    monkeypatch.setattr(allocator, "is_in_force", lambda: False)


@pytest.mark.usefixtures("no_start")
def test_when_it_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is started anew where it is told off, where the C library is another (which has no
    such settings), or where the command line did not lead here.
    """
    assert overwrite_freed(wanted=False, is_program=True) is Allocator.TOLD_OFF
    assert overwrite_freed(wanted=True, is_program=False) is Allocator.NOT_OURS
    monkeypatch.setattr(os, "confstr", lambda _: None)
    assert overwrite_freed(wanted=True, is_program=True) is Allocator.NOT_GLIBC

    def musl(_: str) -> str:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "confstr", musl)
    assert overwrite_freed(wanted=True, is_program=True) is Allocator.NOT_GLIBC


@pytest.mark.usefixtures("no_start")
def test_a_start_without_effect_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mark of the first start, without its effect, is an error that says what to do."""
    monkeypatch.setenv(allocator.MARK, "1")
    with pytest.raises(StartupError, match=r"--plain-allocator"):
        overwrite_freed(wanted=True, is_program=True)
    assert allocator.MARK not in os.environ


@pytest.mark.parametrize("state", Allocator)
def test_the_log_says_what_becomes_of_freed_memory(
    state: Allocator, caplog: pytest.LogCaptureFixture
) -> None:
    """One line at start; a warning with the reason where freed memory is kept as it is."""
    with caplog.at_level(logging.INFO):
        allocator.tell(state)
    (record,) = caplog.records
    if state is Allocator.OVERWRITES:
        assert (record.msg, record.levelname) == ("memory.overwrites_freed", "INFO")
    else:
        assert (record.msg, record.levelname) == ("memory.keeps_freed", "WARNING")
        assert record.__dict__["reason"] == state.value


def test_a_child_without_secrets_gets_the_environment_as_it_was() -> None:
    """The settings are taken out again, and another's tunables stay."""
    before = {"PATH": "/bin"}
    assert allocator.plain_environment(allocator.environment(before)) == before
    tuned = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=3"}
    assert allocator.plain_environment(allocator.environment(tuned)) == tuned


def test_overwriting_can_be_told_off(
    production: Production, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a flag of `dev`, and by a setting of `serve`; and what did not come from the process' own
    command line starts nothing anew.
    """
    given: list[dict[str, bool]] = []

    def noted(**how: bool) -> Allocator:
        given.append(how)
        raise StartupError("enough")

    monkeypatch.setattr(dev_module, "overwrite_freed", noted)
    monkeypatch.setattr(serve_module, "overwrite_freed", noted)
    config = str(production.write())
    dev_arguments = ["dev", "--state", str(tmp_path / "state")]
    for arguments in (dev_arguments, ["serve", "--config", config]):
        assert main(arguments) == 1
    assert main([*dev_arguments, "--plain-allocator"]) == 1
    monkeypatch.setenv("IRONWORK_MEMORY__OVERWRITE_FREED", "false")
    assert main(["serve", "--config", config]) == 1
    assert [how["wanted"] for how in given] == [True, True, False, False]
    monkeypatch.setattr(sys, "argv", ["ironwork-server", "serve", "--config", config])
    assert main() == 1
    assert [how["is_program"] for how in given] == [False] * 4 + [True]
