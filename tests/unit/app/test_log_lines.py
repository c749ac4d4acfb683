"""What a log line may hold: constants, named fields, types and places."""

import json
import logging
import sys
import threading

import pytest

from ironwork_server.app.logs import JsonFormatter, configure
from ironwork_server.core.described import MAX_FRAMES, described

SECRET = "sk-ant-api03-canary"


def record(name: str, message: str, *args: object, **more: object) -> logging.LogRecord:
    """As a logger makes one."""
    made = logging.LogRecord(name, logging.ERROR, "/a/b/module.py", 7, message, args, None)
    made.__dict__.update(more)
    return made


def raised(error: Exception) -> Exception:
    """The error with the place that it was raised from."""
    try:
        _raise(error)
    except Exception as caught:  # noqa: BLE001  any error is what this is for
        return caught
    raise AssertionError("it was raised")


def _raise(error: Exception) -> None:
    raise error


def line(made: logging.LogRecord) -> dict[str, object]:
    """The formatted line, parsed."""
    parsed: dict[str, object] = json.loads(JsonFormatter().format(made))
    return parsed


def test_our_records_show_their_constant_and_named_fields_only() -> None:
    """Arguments and fields that are not on the list do not show."""
    shown = line(record("ironwork_server.x", "an.event %s", SECRET, reason="R", secret=SECRET))
    assert (shown["event"], shown["reason"]) == ("an.event %s", "R")
    assert SECRET not in json.dumps(shown)


def test_records_of_others_show_where_they_came_from_only() -> None:
    """A library's sentence may hold anything, so its place stands for it."""
    shown = line(record("ironwork_server_not.x", SECRET, reason=SECRET))
    assert shown["event"] == "module:7"
    assert SECRET not in json.dumps(shown)


def test_an_error_shows_as_its_type_and_place() -> None:
    """No error's text is logged, nor that of what caused it."""
    error = raised(ValueError(SECRET))
    error.__cause__ = KeyError(SECRET)
    shown = line(record("x", "y", exc_info=(type(error), error, error.__traceback__)))
    assert shown["error"] == "builtins.ValueError"
    assert str(shown["at"]).endswith("_raise']")
    assert SECRET not in json.dumps(shown)
    assert shown["at"] == described(error)["at"]


def test_the_places_of_an_error_are_bounded() -> None:
    """A deep recursion does not make an endless line: the innermost places are shown."""

    def deep(left: int) -> None:
        if left == 0:
            raise LookupError
        deep(left - 1)

    with pytest.raises(LookupError) as caught:
        deep(100)
    places = described(caught.value)["at"]
    assert isinstance(places, list)
    assert len(places) == MAX_FRAMES


def test_libraries_that_would_log_secrets_make_no_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """At level debug, the HTTP libraries and the database stay silent: their records would hold
    headers, bodies and rows.
    """
    root, before = logging.getLogger(), logging.getLogger().handlers[:]
    level = root.level
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    try:
        configure("debug")
        assert logging.getLogger("ironwork_server.x").isEnabledFor(logging.DEBUG)
        for name in ("anthropic._base_client", "httpx2", "httpcore2.http11", "h11", "hpack.hpack"):
            logger: logging.Logger | None = logging.getLogger(name)
            while logger is not None and logger.propagate:
                logger = logger.parent
            assert logger is not None, f"{name}: nothing reaches the root's handlers"
        assert not logging.getLogger("sqlalchemy.engine.Engine").isEnabledFor(logging.INFO)
    finally:
        for handler in root.handlers[:]:
            root.removeHandler(handler)
        for handler in before:
            root.addHandler(handler)
        root.setLevel(level)
        logging.captureWarnings(capture=False)
        logging.raiseExceptions = True
