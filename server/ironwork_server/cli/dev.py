"""`ironwork-server dev`, up to where its libraries are loaded."""

from pathlib import Path

from ironwork_server.app import logs
from ironwork_server.app.allocator import overwrite_freed, tell
from ironwork_server.app.startup import refuse_speaking_environment


def dev(
    *,
    state: Path,
    listen: str,
    upstream: str,
    pace_s: float,
    log_level: str,
    as_json: bool,
    plain_allocator: bool,
    is_program: bool,
) -> int:
    """Serve until SIGTERM or Ctrl-C. is_program: see overwrite_freed. Errors: StartupError and
    those of the parts.
    """
    refuse_speaking_environment()
    allocator = overwrite_freed(wanted=not plain_allocator, is_program=is_program)
    # Only now: the process may just have been started anew, and to load them takes seconds.
    from ironwork_server.cli.dev_serving import checked, run

    endpoint = checked(listen, upstream)
    logs.configure(log_level)
    tell(allocator)
    run(state, listen, endpoint, pace_s, log_level, as_json=as_json)
    return 0
