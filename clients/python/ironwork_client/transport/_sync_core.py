"""One request over a pooled stream, for threads."""

from collections.abc import Callable, Iterator

from ironwork_client.transport import _outcome
from ironwork_client.transport._settings import Settings
from ironwork_client.transport._sync_pool import SyncPool
from ironwork_client.transport._sync_stream import Outgoing, SyncStream
from ironwork_client.transport._values import (
    Answer,
    BodyArrived,
    CallEnded,
    CallReport,
    HeadArrived,
    NotSent,
)


def _let_go(pool: SyncPool, stream: SyncStream, verdict: Callable[[], bool]) -> None:
    """Give the stream back as verdict says; drop it where finding out is interrupted."""
    reusable = False
    try:
        reusable = verdict()
    finally:
        pool.release(stream, reusable=reusable)


class SyncBody:
    """An answer's body. It holds a stream until it is read to its end or closed."""

    def __init__(self, pool: SyncPool, stream: SyncStream, report: CallReport) -> None:
        self._pool = pool
        self._stream = stream
        self._report = report
        self._done = False

    def __iter__(self) -> Iterator[bytes]:
        """The bytes as they come. Raises Fault; ends cleanly only where the answer is whole."""
        while not self._done:
            try:
                event = self._stream.event()
            except BaseException:
                self._done = True
                self._pool.release(self._stream, reusable=False)
                raise
            if isinstance(event, BodyArrived):
                yield event.data
            elif isinstance(event, CallEnded):
                self._done = True
                _outcome.fill(self._report, event.end)
                _let_go(self._pool, self._stream, self._stream.settle)
                fault = _outcome.end_after_head(event.end)
                if fault is not None:
                    raise fault

    def close(self) -> None:
        """Cancels the call where its end has not been seen."""
        if not self._done:
            self._done = True
            _let_go(self._pool, self._stream, self._stream.abandon)


class SyncCore:
    """Sends requests; owns the pool."""

    def __init__(self, settings: Settings) -> None:
        self._pool = SyncPool(settings)

    def send(self, outgoing: Outgoing, report: CallReport) -> tuple[Answer, SyncBody]:
        """The answer's head, and its body to come. Raises Fault, Refused, or what the request's
        body raises.

        A stream that proves useless before anything went upstream is replaced, once.
        """
        try:
            return self._attempt(outgoing, report)
        except NotSent as unsent:
            if not (unsent.body_untouched or outgoing.replayable):
                raise unsent.otherwise from None
        try:
            return self._attempt(outgoing, report)
        except NotSent as unsent:
            raise unsent.otherwise from None

    def close(self) -> None:
        self._pool.close()

    def _attempt(self, outgoing: Outgoing, report: CallReport) -> tuple[Answer, SyncBody]:
        stream = self._pool.acquire(outgoing.timeouts)
        try:
            stream.begin(outgoing)
            event = stream.event()
        except BaseException:
            self._pool.release(stream, reusable=False)
            raise
        if isinstance(event, HeadArrived):
            return event.answer, SyncBody(self._pool, stream, report)
        if isinstance(event, CallEnded):
            _outcome.fill(report, event.end)
            error = _outcome.end_without_head(event.end)
            if isinstance(error, NotSent):
                # It takes no further call, whether or not its GoAway is here yet.
                self._pool.release(stream, reusable=False)
            else:
                _let_go(self._pool, stream, stream.settle)
            raise error
        raise AssertionError("the grammar lets nothing else come first")
