"""Custody on a real journal, a real SQLite store and a real SoftHSM; Anthropic is scripted."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fixtures.log_check import held
from fixtures.migrated import NewStore
from fixtures.softhsm import TokenFiles
from ironwork_audit import Event, parse
from ironwork_hsm import HsmError, KeyWrapper, WrappedKey
from ironwork_hsm.backends import open_backend
from ironwork_server import store as stores
from ironwork_server.access.limits import Limits, LimitSettings
from ironwork_server.core.ports import Credential, StaleCredential
from ironwork_server.core.secret import Secret
from ironwork_server.core.values import (
    Action,
    AuditEvent,
    Claims,
    Principal,
    Resource,
    ScreenedRequest,
    Validation,
    Verdict,
)
from ironwork_server.custody.add_key import KeyAdder
from ironwork_server.custody.delete_key import KeyDeleter
from ironwork_server.custody.gate import Gate, Permit
from ironwork_server.custody.in_flight import InFlight
from ironwork_server.custody.last_used import UseRecorder
from ironwork_server.custody.use_key import KeyUser
from ironwork_server.custody.vault import Vault
from ironwork_server.journal import FileJournal
from ironwork_server.store import Store

WORKSPACE = "acme"
KEY = b"sk-ant-api03-" + b"k" * 60 + b"AAzz"
OTHER_KEY = b"sk-ant-api03-" + b"o" * 60 + b"AAyy"
ORGANIZATION = "5f0c6c1e-9b1d-4c57-8f0e-2f3b8a7d6c10"
REQUEST = ScreenedRequest(
    method="POST",
    path="/v1/messages",
    query="",
    headers=(),
    content_length=0,
    has_body=True,
    max_body=1024,
    route="messages",
)


def a_principal(role: str = "key-admin", workspace: str | None = WORKSPACE) -> Principal:
    """A principal whose certificate is good for an hour."""
    return Principal(
        f"spiffe://test/{role}", role, workspace, datetime.now(UTC) + timedelta(hours=1)
    )


class OpenPolicy:
    """Permits what `allow` says; by default everything."""

    version = "test-policy"

    def __init__(self) -> None:
        self.ever = True
        self.allow: Callable[[Principal, Action, str | None], bool] = lambda *_: True

    def may_ever(self, principal: Principal, action: Action) -> bool:
        return self.ever

    def permits(self, principal: Principal, action: Action, workspace: str | None) -> bool:
        return self.allow(principal, action, workspace)


class FaultyWrapper:
    """A real wrapper, before which an error may be put."""

    def __init__(self, real: KeyWrapper) -> None:
        self._real = real
        self.fault: HsmError | None = None
        self.unwraps = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def wrap(
        self,
        data_key: bytes | bytearray,
        context: bytes,
        *,
        version: int | None = None,
        reference: str = "",
    ) -> WrappedKey:
        if self.fault is not None:
            raise self.fault
        return await self._real.wrap(data_key, context, version=version)

    async def unwrap(
        self, wrapped: WrappedKey, context: bytes, *, reference: str = ""
    ) -> bytearray:
        if self.fault is not None:
            raise self.fault
        self.unwraps += 1
        return await self._real.unwrap(wrapped, context)

    async def check(self, version: int | None = None) -> None:
        if self.fault is not None:
            raise self.fault
        await self._real.check(version)


class FaultyJournal:
    """A real journal whose appends fail, before or after the write, when `failing` says so."""

    def __init__(self, real: FileJournal) -> None:
        self._real = real
        self.failing: Callable[[AuditEvent], Exception | None] = lambda _: None
        self.failing_after: Callable[[AuditEvent], Exception | None] = lambda _: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def append(self, *events: AuditEvent) -> Any:
        for event in events:
            if (fault := self.failing(event)) is not None:
                raise fault
        written = await self._real.append(*events)
        for event in events:
            if (fault := self.failing_after(event)) is not None:
                raise fault
        return written

    def was_deleted(self, workspace: str, key_id: str) -> bool:
        return self._real.was_deleted(workspace, key_id)

    async def close(self) -> None:
        """The journal that is open now: a test may have opened the folder anew."""
        await self._real.close()


@dataclass(frozen=True)
class ScriptedAnswer:
    """An UpstreamResponse as told."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: tuple[bytes | Exception, ...]

    async def chunks(self) -> AsyncIterator[bytes]:
        for chunk in self.body:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk


class ScriptedAnthropic:
    """Validates and answers as told; remembers the keys that it was sent."""

    def __init__(self) -> None:
        self.validation = Validation(Verdict.VALID, ORGANIZATION)
        self.status = 200
        self.headers: tuple[tuple[bytes, bytes], ...] = ()
        # The body's chunks; an error is raised where it stands.
        self.body: list[bytes | Exception] = []
        self.keys: list[bytes] = []
        self.validated = 0
        self.asks_for_the_key = True
        self.before_write: Callable[[], None] = lambda: None

    async def validate(self, key: Secret) -> Validation:
        self.validated += 1
        return self.validation

    def send(
        self, request: ScreenedRequest, body: Any, credential: Credential, progress: Any
    ) -> AbstractAsyncContextManager[Any]:
        return self._send(credential, progress)

    @asynccontextmanager
    async def _send(self, credential: Credential, progress: Any) -> AsyncIterator[Any]:
        for _ in range(3 if self.asks_for_the_key else 0):
            injector = await credential()
            buffer = bytearray(injector.length)
            self.before_write()
            try:
                injector.inject(memoryview(buffer))
            except StaleCredential:
                continue
            progress.sent = True
            self.keys.append(bytes(buffer))
            break

        yield ScriptedAnswer(self.status, self.headers, tuple(self.body))


@dataclass(frozen=True)
class Entry:
    """One line of the journal."""

    event: Event
    sequence: int
    text: str


@dataclass
class Custody:
    """Every part, wired as in production."""

    journal: FaultyJournal
    store: Store
    wrapper: FaultyWrapper
    anthropic: ScriptedAnthropic
    policy: OpenPolicy
    gate: Gate
    vault: Vault
    adder: KeyAdder
    deleter: KeyDeleter
    user: KeyUser
    in_flight: InFlight
    uses: UseRecorder
    health: list[bool]
    folder: Path
    clock: list[float] = field(default_factory=lambda: [0.0])

    def admit(
        self, action: Action, *, key_id: str | None = None, principal: Principal | None = None
    ) -> AbstractAsyncContextManager[Permit]:
        resource = Resource(WORKSPACE if action is not Action.READ_AUDIT else None, key_id)
        return self.gate.admit(
            principal or a_principal(), action, resource, Claims(task="t", agent="a")
        )

    def entries(self) -> list[Entry]:
        """Everything in the journal's file, parsed."""
        lines = held(self.folder / "audit")
        return [_entry(line) for line in lines]


def _entry(line: bytes) -> Entry:
    parsed = parse(line)
    return Entry(parsed.event, parsed.sequence, line.decode())


@pytest.fixture
async def custody(
    tmp_path: Path, keyed_token: TokenFiles, new_store: NewStore
) -> AsyncIterator[Custody]:
    """Custody with limits of the defaults and a freshness of one second by a clock of the test."""
    async with AsyncExitStack() as stack:
        journal = FileJournal.open(tmp_path / "audit", "ironwork.test/custody")
        faulty_journal = FaultyJournal(journal)
        stack.push_async_callback(faulty_journal.close)
        wrapper = await open_backend(keyed_token.uri)
        stack.push_async_callback(wrapper.close)
        faulty = FaultyWrapper(wrapper)
        store = stores.open_store(new_store(tmp_path / "keys.db"))
        stack.push_async_callback(store.close)
        anthropic, policy, health = ScriptedAnthropic(), OpenPolicy(), list[bool]()
        gate = Gate(policy=lambda: policy, limits=Limits(LimitSettings()), journal=faulty_journal)
        vault = Vault([faulty], store, on_health=health.append)
        in_flight, uses = InFlight(), UseRecorder(store)
        clock = [0.0]
        yield Custody(
            journal=faulty_journal,
            store=store,
            wrapper=faulty,
            anthropic=anthropic,
            policy=policy,
            gate=gate,
            vault=vault,
            adder=KeyAdder(store=store, vault=vault, validator=anthropic, max_keys=5),
            deleter=KeyDeleter(store=store, in_flight=in_flight, freshness_s=0.0),
            user=KeyUser(
                store=store,
                vault=vault,
                upstream=anthropic,  # type: ignore[arg-type]  # close() is not used here
                journal=faulty_journal,
                in_flight=in_flight,
                uses=uses,
                freshness_s=1.0,
                clock=lambda: clock[0],
            ),
            in_flight=in_flight,
            uses=uses,
            health=health,
            folder=tmp_path,
            clock=clock,
        )
        await gate.settle()
