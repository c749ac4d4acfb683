"""A C2SP tlog-tiles log on disk (c2sp.org/tlog-tiles): appending, durably, and reading it back.

Synchronous: nothing here knows an event loop. `AppendLog` is the whole interface.
"""

from ironwork_audit.log.engine import AppendLog, Render
from ironwork_audit.log.errors import (
    LogDamaged,
    LogError,
    LogInUse,
    LogUnusable,
    OriginDiffers,
    WriteFailed,
)
from ironwork_audit.log.filesystem import FileSystem, OperatingSystem
from ironwork_audit.log.growth import Tree
from ironwork_audit.log.snapshot import Dump, Fold, NoFold

__all__ = [
    "AppendLog",
    "Dump",
    "FileSystem",
    "Fold",
    "LogDamaged",
    "LogError",
    "LogInUse",
    "LogUnusable",
    "NoFold",
    "OperatingSystem",
    "OriginDiffers",
    "Render",
    "Tree",
    "WriteFailed",
]
