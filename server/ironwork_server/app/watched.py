"""What is read again when its files change: policies, certificates and client CAs."""

from collections.abc import Callable
from contextlib import AsyncExitStack

from ironwork_server.access.policy import CedarPolicy
from ironwork_server.access.reload import Reloading
from ironwork_server.access.tls import ServerTls
from ironwork_server.app.metrics import PrometheusMeter, tell_expiry
from ironwork_server.app.records import ServiceRecords
from ironwork_server.app.settings import Settings


async def watch_policy(
    stack: AsyncExitStack, settings: Settings, records: ServiceRecords
) -> Reloading[CedarPolicy]:
    """The policies, until the stack ends. Errors: AccessConfigurationError."""
    folder = settings.policy.folder
    policy = Reloading(
        lambda: CedarPolicy.load(folder),
        [folder],
        name="policy",
        on_success=lambda _, new: records.policy_reloaded(new.version),
        on_failure=lambda _: records.reload_failed("policy"),
    )
    return await stack.enter_async_context(policy)


async def watch_tls(
    stack: AsyncExitStack,
    settings: Settings,
    records: ServiceRecords,
    meter: PrometheusMeter,
    check: Callable[[ServerTls], None],
) -> Reloading[ServerTls]:
    """The server's certificate and the client CAs, until the stack ends. check: also of those that
    come later. Errors: AccessConfigurationError.
    """
    files = settings.tls

    def load() -> ServerTls:
        loaded = ServerTls.load(files.certificate, files.private_key, files.client_ca)
        check(loaded)
        tell_expiry(meter, loaded)
        return loaded

    tls = Reloading(
        load,
        [files.certificate, files.private_key, files.client_ca],
        name="tls",
        on_success=lambda _old, _new: records.certificates_reloaded(),
        on_failure=lambda _: records.reload_failed("tls"),
    )
    return await stack.enter_async_context(tls)
