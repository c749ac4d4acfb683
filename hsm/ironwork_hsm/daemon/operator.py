"""What an operator's commands share: a record of their own, beside the process' one, which that
process holds while it runs; signed at the end of each command, where records are.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from datetime import UTC, datetime
from typing import Final, TypeVar
from uuid import uuid4

from ironwork_audit import INTENT, OUTCOME, Event
from ironwork_hsm.daemon.checkpoints import RecordCheckpoints
from ironwork_hsm.daemon.device import reason_of
from ironwork_hsm.daemon.head import HeadFile
from ironwork_hsm.daemon.latch import latch_of, make_private
from ironwork_hsm.daemon.record import LogRecord, open_record
from ironwork_hsm.daemon.settings import Settings
from ironwork_hsm.interface import HsmError, Signer, Unavailable
from ironwork_hsm.signers import open_signer

OPERATOR: Final = "operator"

T = TypeVar("T")
Details = Mapping[str, str | int]


def operator_origin(settings: Settings) -> str:
    """The name of the commands' record."""
    return f"{settings.record_origin}/{OPERATOR}"


def trying_pin(settings: Settings, uri: str) -> AbstractContextManager[None]:
    """Around what tries the PIN of a URI: one that the token refused is not tried again, by no run
    and by no process. Raises PinRefused, ConfigurationError.
    """
    make_private(settings.state)
    latch = latch_of(settings.state, uri, {})
    return nullcontext() if latch is None else latch.trying()


@asynccontextmanager
async def operator_record(settings: Settings) -> AsyncIterator[LogRecord]:
    """The commands' record, open for one of them; with record.signing_key it is signed at the end.
    Raises HsmError; at the end Unavailable, where it could not be signed.
    """
    async with AsyncExitStack() as stack:
        signer = None
        if settings.record_key is not None:
            # Before anything is done, so that what is done can be signed.
            signer = await open_record_key(settings, settings.record_key)
            stack.push_async_callback(signer.close)
        record = open_operator_record(settings)
        stack.push_async_callback(record.close)
        if signer is None:
            yield record
            return
        async with signing(settings, record, signer):
            yield record


def open_operator_record(settings: Settings) -> LogRecord:
    """The commands' record. Raises ConfigurationError."""
    return open_record(
        settings.record_folder / OPERATOR,
        operator_origin(settings),
        signed=settings.record_key is not None,
    )


@asynccontextmanager
async def signing(settings: Settings, record: LogRecord, signer: Signer) -> AsyncIterator[None]:
    """Sign it at the end, to its last entry. Raises ConfigurationError, at the beginning, where
    another key did before or entries are missing; Unavailable.
    """
    head = HeadFile(settings.state, operator_origin(settings))
    try:
        checkpoints = RecordCheckpoints(record, signer, head)
        await checkpoints.begin()
        try:
            yield
        finally:
            await _sign(checkpoints)
    finally:
        await head.close()


async def _sign(checkpoints: RecordCheckpoints) -> None:
    try:
        await checkpoints.sign_now()
    except (Unavailable, TimeoutError):
        raise Unavailable(
            "The operator's record could not be signed; what was done is in it, and the next"
            " command signs it."
        ) from None


async def open_record_key(settings: Settings, uri: str) -> Signer:
    """The key of record.signing_key; the caller closes it. Raises HsmError."""
    with trying_pin(settings, uri):
        return await open_signer(uri)


async def recorded(
    record: LogRecord,
    operation: str,
    details: Details,
    act: Callable[[], Awaitable[T]],
    found: Callable[[T], Details],
) -> T:
    """One HSM operation between its intent and its outcome, which holds what found says of the
    result. Raises what act raises, Unavailable.
    """
    correlation_id = str(uuid4())

    def event(phase: str, more: Details, *, reason: str, intent: int | None) -> Event:
        return Event(
            phase=phase,
            operation=operation,
            correlation_id=correlation_id,
            time=datetime.now(UTC),
            success=None if intent is None else not reason,
            reason=reason,
            details={**details, **more},
            intent_index=intent,
        )

    intent = await record.append(event(INTENT, {}, reason="", intent=None))
    reason = "INTERRUPTED"
    more: Details = {}
    try:
        result = await act()
        reason, more = "", found(result)
    except HsmError as error:
        reason = reason_of(error)
        raise
    finally:
        await record.append(event(OUTCOME, more, reason=reason, intent=intent))
    return result
