"""The composition root: builds every part once, in order, and takes them down in reverse."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc.aio

from ironwork_audit.publishing import ATTEMPT_DEADLINE_S
from ironwork_hsm import FrontsKeys, HsmError, KeyWrapper
from ironwork_hsm.backends import open_backend
from ironwork_server.access.errors import AccessConfigurationError
from ironwork_server.access.identity import IdentityMapper
from ironwork_server.access.limits import Limits, LimitSettings
from ironwork_server.access.rules import IdentityRule
from ironwork_server.access.tls import ServerTls
from ironwork_server.access.trust import ClientTrust
from ironwork_server.app.audit_key import open_audit_signer
from ironwork_server.app.background import in_background, regularly
from ironwork_server.app.break_glass import recipient_of
from ironwork_server.app.grpc_server import listen
from ironwork_server.app.hsm_state import HsmState
from ironwork_server.app.metrics import PrometheusMeter
from ironwork_server.app.metrics_listener import listening
from ironwork_server.app.metrics_parts import MeteredJournal, MeteredStore
from ironwork_server.app.records import ServiceRecords
from ironwork_server.app.settings import Settings
from ironwork_server.app.startup import StartupError, refuse_debugging_loop
from ironwork_server.app.watched import watch_policy, watch_tls
from ironwork_server.app.witness import Shown, show_to_witnesses
from ironwork_server.core.errors import IronworkError, Unavailable
from ironwork_server.core.meter import Meter
from ironwork_server.core.names import PageTokens
from ironwork_server.core.ports import HeadStore, Journal, KeyStore
from ironwork_server.core.routes import RouteTable
from ironwork_server.custody.add_key import KeyAdder
from ironwork_server.custody.checkpoints import Checkpointer
from ironwork_server.custody.data_key_cache import DataKeyCache
from ironwork_server.custody.delete_key import KeyDeleter
from ironwork_server.custody.gate import Gate
from ironwork_server.custody.in_flight import InFlight
from ironwork_server.custody.last_used import UseRecorder
from ironwork_server.custody.list_keys import KeyLister
from ironwork_server.custody.probe import MasterKeyProbe
from ironwork_server.custody.read_audit import AuditFollower, AuditLister, AuditProver
from ironwork_server.custody.settle import Settler
from ironwork_server.custody.use_key import KeyUser
from ironwork_server.custody.vault import Vault
from ironwork_server.custody.versions import follow
from ironwork_server.journal import FileJournal, JournalError, Witnesses
from ironwork_server.rpc.audit_service import AuditService
from ironwork_server.rpc.chain import Chain
from ironwork_server.rpc.grant import EitherChange, Grants
from ironwork_server.rpc.health import HealthMonitor
from ironwork_server.rpc.key_service import KeyService
from ironwork_server.rpc.peer import Peers
from ironwork_server.rpc.receive import TableInterceptor
from ironwork_server.rpc.with_key import Drain, StreamParts, StreamSettings
from ironwork_server.store import open_store
from ironwork_server.upstream.client import HttpUpstream
from ironwork_server.upstream.endpoint import UpstreamEndpoint
from ironwork_server.upstream.validator import AnthropicKeyValidator

log = logging.getLogger(__name__)

# A request begins on a read of the database that is at most this old (DESIGN 4).
FRESHNESS_S = 1.0

# Of a setting, and of the keys' names that it leads to. Raises StartupError.
CheckKey = Callable[[str, Collection[str]], None]


@dataclass(frozen=True, slots=True)
class Service:
    """A service that is serving. port: the one that it listens on."""

    port: int
    server: grpc.aio.Server
    health: HealthMonitor
    reading: TableInterceptor
    # Where the metrics are, ADDRESS:PORT; None where they are off.
    metrics: str | None
    drain: Drain
    drain_s: float

    async def stop(self) -> None:
        """Drain: new calls go elsewhere, calls in flight have drain_s seconds."""
        log.info("service.draining")
        await self.health.drain()
        self.drain.begin(self.drain_s)
        await self.server.stop(self.drain_s)


@asynccontextmanager
async def running(
    settings: Settings,
    endpoint: UpstreamEndpoint,
    *,
    freshness_s: float = FRESHNESS_S,
    check_tls: Callable[[ServerTls], None] = lambda _: None,
    check_key: CheckKey = lambda _setting, _names: None,
) -> AsyncIterator[Service]:
    """Build and start everything; drain and take it down at the end. Errors: StartupError.

    check_tls: raises AccessConfigurationError for certificates that are not to be used, also for
    those that come while serving. check_key: raises StartupError for a setting that leads to keys
    (their names) that are not to be used.
    """
    refuse_debugging_loop(asyncio.get_running_loop())
    async with AsyncExitStack() as stack:
        try:
            service = await _start(stack, settings, endpoint, freshness_s, check_tls, check_key)
        except (AccessConfigurationError, JournalError, HsmError) as error:
            # These are ours, and their texts are written for an operator.
            raise StartupError(str(error)) from None
        except IronworkError as error:
            raise StartupError(f"{error.message} ({error.reason})") from None
        address = f"{settings.listen.rpartition(':')[0]}:{service.port}"
        log.info("service.serving", extra={"address": address})
        yield service
        await service.stop()


async def _start(
    stack: AsyncExitStack,
    settings: Settings,
    endpoint: UpstreamEndpoint,
    freshness_s: float,
    check_tls: Callable[[ServerTls], None],
    check_key: CheckKey,
) -> Service:
    meter = PrometheusMeter(workspaces=settings.metrics.workspaces)
    opened = open_store(settings.store.url)
    stack.push_async_callback(opened.close)
    log_file = FileJournal.open(settings.audit.folder, settings.audit.origin)
    stack.push_async_callback(log_file.close)
    journal = MeteredJournal(log_file, meter)
    records = ServiceRecords(journal, meter=meter)
    checkpointer, witnesses = await _publish(
        stack, settings, log_file, opened, records, meter, check_key=check_key
    )
    await stack.enter_async_context(records.running())
    policy = await watch_policy(stack, settings, records)
    tls = await watch_tls(stack, settings, records, meter, check_tls)
    store = MeteredStore(opened, meter)
    wrappers = [await _open_wrapper(stack, uri) for uri in settings.master_key.uris]
    for wrapper in wrappers:
        names = wrapper.names if isinstance(wrapper, FrontsKeys) else {wrapper.name}
        check_key("master_key.uris", names)
    hsm = await _prove(wrappers, journal, store, meter)
    await in_background(stack, hsm.run())
    vault = Vault(
        wrappers,
        store,
        on_health=hsm.seen,
        meter=meter,
        recipient=recipient_of(settings),
        cache=_data_key_cache(stack, settings),
    )
    upstream = _upstream(settings, endpoint, meter)
    stack.push_async_callback(upstream.close)
    settler = Settler(
        store=store, journal=journal, reader=log_file.reader(), left=log_file.undecided
    )
    await in_background(stack, settler.run())
    limits = Limits(_limits(settings))
    gate = Gate(
        policy=lambda: policy.value,
        limits=limits,
        journal=journal,
        meter=meter,
        on_undecided=settler.undecided,
        publisher=checkpointer,
    )
    stack.push_async_callback(gate.settle)
    await in_background(stack, regularly(gate.write_refusals))
    uses = UseRecorder(store)
    stack.push_async_callback(uses.flush)
    await in_background(stack, uses.run())
    in_flight = InFlight()
    drain = Drain()
    trust = ClientTrust(lambda: tls.value.client_ca)
    peers = Peers(_mapper(settings), trust, on_refused=records.refused)
    grants = Grants(peers=peers, gate=gate, changes=EitherChange([policy, tls]))
    chain = Chain(peers=peers, gate=gate, grants=grants)
    tokens = PageTokens(opened.installation_id.encode())
    streams = StreamParts(
        peers=peers,
        gate=gate,
        key_user=KeyUser(
            store=store,
            vault=vault,
            upstream=upstream,
            journal=journal,
            in_flight=in_flight,
            uses=uses,
            freshness_s=freshness_s,
        ),
        routes=RouteTable(frozenset(settings.api.groups)),
        grants=grants,
        drain=drain,
        settings=StreamSettings(
            age_s=settings.streams.age_s,
            upload_stall_s=settings.streams.upload_stall_s,
            write_stall_s=settings.streams.write_stall_s,
        ),
        meter=meter,
    )
    keys = KeyService(
        chain=chain,
        adder=KeyAdder(
            store=store,
            vault=vault,
            validator=AnthropicKeyValidator(upstream),
            max_keys=settings.limits.max_keys,
            meter=meter,
        ),
        lister=KeyLister(store=store, tokens=tokens),
        deleter=KeyDeleter(
            store=store, in_flight=in_flight, freshness_s=freshness_s, forget=vault.forget
        ),
        streams=streams,
    )
    reader = log_file.reader()
    audit = AuditService(
        chain=chain,
        lister=AuditLister(reader=reader, origin=journal.origin, tokens=tokens),
        prover=AuditProver(reader=reader),
        follower=AuditFollower(reader=log_file.reader(), origin=journal.origin),
        verifier_key=str(checkpointer.key),
        draining=drain.begun,
    )
    health = HealthMonitor(
        {
            "store": store.check,
            "journal": _journal_check(log_file),
            "checkpoint": checkpointer.check,
            "hsm": hsm.check,
        },
        lost=grants.untrusted,
        meter=meter,
        witness=None if witnesses is None else witnesses.check,
    )
    await health.refresh()
    await in_background(stack, health.run())
    meter.watch("open", "What is under way.", "what", limits.open_counts)
    meter.watch(
        "upstream_connections", "Connections to Anthropic.", "state", upstream.connection_counts
    )
    metrics = await _show_metrics(stack, settings, meter)
    reading = TableInterceptor(peers=peers, gate=gate, meter=meter)
    server, port = await listen(settings, tls, reading, keys, audit, health)
    stack.push_async_callback(server.stop, 0)
    return Service(port, server, health, reading, metrics, drain, settings.drain_s)


async def _publish(
    stack: AsyncExitStack,
    settings: Settings,
    journal: FileJournal,
    heads: HeadStore,
    records: ServiceRecords,
    meter: Meter,
    *,
    check_key: CheckKey,
) -> tuple[Checkpointer, Witnesses | None]:
    """Sign the log from now on, to the last entry of the shutdown, and have it witnessed."""
    signer = await open_audit_signer(settings)
    stack.push_async_callback(signer.close)
    check_key("audit.signing_key", {signer.name})
    shown = Shown()
    checkpointer = Checkpointer(journal, signer, heads, on_checkpoint=shown)
    await checkpointer.resume()
    witnesses = await show_to_witnesses(stack, settings, journal, checkpointer, records, meter)
    shown.to = witnesses
    task = asyncio.ensure_future(checkpointer.run())

    async def end() -> None:
        checkpointer.stop()
        done, _ = await asyncio.wait([task], timeout=ATTEMPT_DEADLINE_S * 2)
        if not done:
            task.cancel()
            await asyncio.wait([task])

    stack.push_async_callback(end)
    return checkpointer, witnesses


async def _open_wrapper(stack: AsyncExitStack, uri: str) -> KeyWrapper:
    # Without its own trial, which would be an HSM operation without a record: the probe follows.
    wrapper = await open_backend(uri, allow_missing=True)
    stack.push_async_callback(wrapper.close)
    return wrapper


async def _prove(
    wrappers: Sequence[KeyWrapper], journal: Journal, store: KeyStore, meter: Meter
) -> HsmState:
    """A round trip with each. What the first one then wraps with is in force until a rotation, also
    where newer versions are made.
    """
    probe = MasterKeyProbe(wrappers, journal, store, meter=meter)
    await probe.check()
    await follow(wrappers[0], store)
    return HsmState(probe)


def _data_key_cache(stack: AsyncExitStack, settings: Settings) -> DataKeyCache | None:
    bounds = settings.data_key_cache.bounds
    if bounds is None:
        return None
    kept = {"window_s": bounds.max_age_s, "count": bounds.max_uses}
    log.warning("memory.keeps_data_keys", extra=kept)
    cache = DataKeyCache(bounds)
    stack.callback(cache.clear)
    return cache


async def _show_metrics(
    stack: AsyncExitStack, settings: Settings, meter: PrometheusMeter
) -> str | None:
    if not settings.metrics.listen:
        return None
    address = await stack.enter_async_context(listening(settings.metrics.listen, meter.registry))
    log.info("metrics.serving", extra={"address": address})
    return address


def _upstream(settings: Settings, endpoint: UpstreamEndpoint, meter: Meter) -> HttpUpstream:
    proxy = settings.upstream.connect_proxy()
    try:
        upstream = HttpUpstream(endpoint, proxy=proxy, meter=meter)
    except ValueError as error:
        # Trust roots or credentials that cannot be loaded; the text is ours.
        raise StartupError(str(error)) from None
    if proxy is not None:
        log.info("upstream.proxied", extra={"address": f"{proxy.host}:{proxy.port}"})
    return upstream


def _mapper(settings: Settings) -> IdentityMapper:
    rules = [IdentityRule(rule.path, rule.role) for rule in settings.identity.rules]
    return IdentityMapper(settings.identity.trust_domain, rules)


def _limits(settings: Settings) -> LimitSettings:
    limits = settings.limits
    return LimitSettings(
        streams_per_principal=limits.streams_per_principal,
        streams_per_workspace=limits.streams_per_workspace,
        requests_per_principal=limits.requests_per_principal,
        requests_per_workspace=limits.requests_per_workspace,
        unary_per_principal=limits.unary_per_principal,
        unary_per_workspace=limits.unary_per_workspace,
        rate_per_principal=limits.rate_per_principal,
    )


def _journal_check(journal: FileJournal) -> Callable[[], Awaitable[None]]:
    async def check() -> None:
        if not journal.healthy:
            raise Unavailable("The audit log cannot be written.", reason="AUDIT_UNAVAILABLE")

    return check
