"""`ironwork-server serve`."""

import asyncio
import logging
from pathlib import Path

from ironwork_server.app import logs
from ironwork_server.app.allocator import overwrite_freed, tell
from ironwork_server.app.hardening import deny_memory_reads
from ironwork_server.app.settings import Settings
from ironwork_server.app.startup import refuse_speaking_environment
from ironwork_server.cli.config import settings_from
from ironwork_server.cli.run import leave_startup_to_itself, stop_signals
from ironwork_server.upstream.endpoint import ANTHROPIC

log = logging.getLogger(__name__)


def serve(config: Path | None, *, is_program: bool) -> int:
    """Serve until SIGTERM. is_program: see overwrite_freed. Errors: StartupError, SettingsError,
    and those of the parts.
    """
    refuse_speaking_environment()
    settings = settings_from(config)
    # Before anything is read that is worth a thought.
    allocator = overwrite_freed(wanted=settings.memory.overwrite_freed, is_program=is_program)
    # Only now: the process may just have been started anew, and to load the rest takes seconds.
    from ironwork_server.app.production import check_production

    check_production(settings)
    logs.configure(settings.log_level)
    tell(allocator)
    if any(uri.lower().startswith("pkcs11:") for uri in settings.master_key.uris):
        # Allowed, for small set-ups; whoever takes over this process has the PIN.
        log.warning("hsm.pin_in_server")
    deny_memory_reads()
    asyncio.run(_serve(settings))
    return 0


async def _serve(settings: Settings) -> None:
    from ironwork_server.app.production import check_key, check_tls
    from ironwork_server.app.service import running

    with stop_signals() as stop:
        # No setting says whom keys are sent to: Anthropic and nobody else.
        async with running(settings, ANTHROPIC, check_tls=check_tls, check_key=check_key):
            leave_startup_to_itself()
            await stop.wait()
