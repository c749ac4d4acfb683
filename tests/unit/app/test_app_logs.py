"""The rules that every log call of ours keeps, and what reaches the log by other ways."""

import ast
import json
import logging
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest

import ironwork_audit
import ironwork_hsm
import ironwork_server
from ironwork_hsm.daemon import logs as daemon_logs
from ironwork_server.app import logs

SECRET = "sk-ant-api03-canary"
EVENT = re.compile(r"[a-z_]+(\.[a-z_]+)+")
METHODS = {"debug", "info", "warning", "error", "exception", "critical", "log"}


def log_calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call of a logger's method in our code, with its place."""
    for package in (ironwork_server, ironwork_hsm, ironwork_audit):
        for folder in package.__path__:
            for path in sorted(Path(folder).rglob("*.py")):
                for node in ast.walk(ast.parse(path.read_text())):
                    if (
                        isinstance(node, ast.Call)
                        and isinstance(node.func, ast.Attribute)
                        and node.func.attr in METHODS
                        and isinstance(node.func.value, ast.Name)
                        and node.func.value.id in {"log", "_log", "logger", "logging"}
                    ):
                        yield f"{path}:{node.lineno}", node


def test_every_log_call_is_a_constant_event_with_listed_fields() -> None:
    """What is logged is a constant word of ours and fields of the allow list: no sentences, no
    arguments, no field that would silently be left out.
    """
    calls = list(log_calls())
    assert len(calls) > 10
    for place, call in calls:
        assert len(call.args) == 1, f"{place}: an event takes no arguments"
        event = call.args[0]
        assert isinstance(event, ast.Constant), f"{place}: the event is no constant"
        assert EVENT.fullmatch(str(event.value)), f"{place}: {event.value!r} is no event's name"
        for keyword in call.keywords:
            if keyword.arg != "extra" or not isinstance(keyword.value, ast.Dict):
                continue
            for name in keyword.value.keys:
                assert isinstance(name, ast.Constant), place
                # The HSM process is a program of its own, with a list of its own.
                listed = daemon_logs.FIELDS if "/ironwork_hsm/daemon/" in place else logs.FIELDS
                assert name.value in listed, f"{place}: {name.value} is not in FIELDS"


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[StringIO]:
    """Logging as the commands configure it, writing here; undone afterwards."""
    root, before = logging.getLogger(), logging.getLogger().handlers[:]
    level, ours = root.level, logging.getLogger(logs.OURS).level
    stream = StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logs.configure("debug")
            yield stream
    finally:
        logging.captureWarnings(capture=False)
        root.handlers[:] = before
        root.setLevel(level)
        logging.getLogger(logs.OURS).setLevel(ours)
        logging.raiseExceptions = True


def lines(stream: StringIO) -> list[dict[str, object]]:
    """What was written; each line is JSON, and none quotes the secret."""
    assert SECRET not in stream.getvalue()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_field_shows_a_plain_value_or_its_kind(written: StringIO) -> None:
    """What could show what it holds, such as an error, shows as its kind."""
    logging.getLogger("ironwork_server.x").warning(
        "an.event",
        extra={"problem": ValueError(SECRET), "path": Path("/a"), "count": 3, "reason": None},
    )
    (line,) = lines(written)
    assert (line["problem"], line["path"]) == ("<ValueError>", "/a")
    assert (line["count"], line["reason"]) == (3, None)


def test_a_warning_shows_where_it_came_from_only(written: StringIO) -> None:
    """Python's warnings take the same way as records of other libraries."""
    warnings.warn(SECRET, UserWarning, stacklevel=1)
    (line,) = lines(written)
    assert (line["logger"], line["level"]) == ("py.warnings", "warning")


def test_a_thread_that_ends_by_an_error_shows_no_text(written: StringIO) -> None:
    """An error that no thread of a library caught is logged as type and place."""

    def fail() -> None:
        raise ValueError(SECRET)

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    (line,) = lines(written)
    assert (line["event"], line["error"]) == ("thread.ended", "builtins.ValueError")


def test_an_error_in_a_destructor_shows_no_text(written: StringIO) -> None:
    """What Python can only report is reported as type and place."""

    class Failing:
        def __del__(self) -> None:
            raise ValueError(SECRET)

    Failing().__class__  # noqa: B018  made and dropped at once
    (line,) = lines(written)
    assert (line["event"], line["error"]) == ("error.unraisable", "builtins.ValueError")
