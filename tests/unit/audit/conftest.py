"""A small log of its own for each test that asks for one."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.append_log import ORIGIN
from ironwork_audit.log import AppendLog


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def log(folder: Path) -> Iterator[AppendLog]:
    log = AppendLog.open(folder, ORIGIN)
    yield log
    with contextlib.suppress(OSError):  # a test may have closed it
        log.close()
