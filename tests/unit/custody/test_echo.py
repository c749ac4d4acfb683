"""The echoed key, judged: custody.echo on a real journal, store and SoftHSM."""

import asyncio
import gzip
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from ironwork_hsm import Unavailable as HsmUnavailable
from ironwork_server.core.errors import DataLoss, IronworkError, PermissionDenied, UpstreamFailed
from ironwork_server.core.values import Action
from ironwork_server.custody.echo import MAX_CANDIDATES, MAX_CHUNK_BYTES, EchoJudge
from ironwork_server.custody.in_flight import CallScope
from ironwork_server.custody.use_key import Serving

from .conftest import KEY, REQUEST, Custody, a_principal
from .test_add_key import add
from .test_use_key import nothing

# Of the key's length and end.
TWINS = [KEY[:20] + b"%02d" % number + KEY[22:] for number in range(MAX_CANDIDATES + 1)]


@dataclass
class Heard:
    """What an agent would get of an answer."""

    has_head: bool = False
    chunks: list[bytes] = field(default_factory=list)
    error: IronworkError | None = None

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def reason(self) -> str:
        return self.error.reason if self.error is not None else ""


async def hear(
    custody: Custody,
    *body: bytes | Exception,
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> Heard:
    """One Claude request that Anthropic answers with these chunks."""
    custody.anthropic.body, custody.anthropic.headers = list(body), tuple(headers)
    heard = Heard()
    scope = CallScope(asyncio.ensure_future(asyncio.sleep(0)))
    try:
        async with (
            custody.admit(Action.WITH_KEY, principal=a_principal("agent")) as permit,
            custody.user.send(
                permit, REQUEST, nothing(), serving=Serving(), scope=scope
            ) as response,
        ):
            heard.has_head = True
            assert response.status == 200
            assert tuple(response.headers) == tuple(headers)
            async for chunk in response.chunks():
                heard.chunks.append(chunk)
    except IronworkError as error:
        heard.error = error
    return heard


def pepper_unwraps(custody: Custody) -> int:
    """How often a WithKey call had the pepper unwrapped, each with an intent and an outcome."""
    events = [entry.event for entry in custody.entries()]
    calls = {event.correlation_id for event in events if event.operation == "WithKey"}
    phases = [
        event.phase
        for event in events
        if event.correlation_id in calls and event.details.get("purpose") == "pepper"
    ]
    assert phases == ["intent", "outcome"] * (len(phases) // 2)
    return len(phases) // 2


def outcome(custody: Custody) -> tuple[bool | None, str]:
    """How the last call ended, as recorded."""
    event = custody.entries()[-1].event
    assert (event.operation, event.phase) == ("WithKey", "outcome")
    return event.success, event.reason


async def test_an_answer_without_the_key_costs_no_hsm_operation(custody: Custody) -> None:
    """Nothing is unwrapped for the search where no candidate appears, near ones included."""
    await add(custody)
    chunks = [b"see ", KEY[:-1], b" and ", KEY[:-4] + b"AAzy", b" on a bus"]
    heard = await hear(custody, *chunks, headers=[(b"request-id", b"req_1")])
    assert heard.body == b"".join(chunks)
    assert heard.error is None
    assert pepper_unwraps(custody) == 0


@pytest.mark.parametrize("at", [0, 1, 9, 10, 11, len(KEY) - 1, len(KEY)])
async def test_an_echo_in_a_body_is_cut(custody: Custody, at: int) -> None:
    """What stands before the key was delivered, nothing of the key, and the record says so."""
    await add(custody)
    heard = await hear(custody, b"Your key is ", KEY[:at], KEY[at:] + b".", b"more")
    assert heard.body == b"Your key is "
    assert heard.reason == "KEY_ECHOED"
    assert isinstance(heard.error, UpstreamFailed)
    assert pepper_unwraps(custody) == 1
    assert outcome(custody) == (False, "KEY_ECHOED")
    assert custody.wrapper.unwraps


@pytest.mark.parametrize("header", [(b"x-echo", b"it is " + KEY + b"!"), (KEY, b"value")])
async def test_an_echo_in_a_header_withholds_the_head(
    custody: Custody, header: tuple[bytes, bytes]
) -> None:
    """An answer whose headers hold the key, in a value or a name, is not even begun."""
    await add(custody)
    heard = await hear(custody, b"body", headers=[(b"request-id", b"req_1"), header])
    assert (heard.has_head, heard.reason) == (False, "KEY_ECHOED")


async def test_a_header_with_another_key_passes(custody: Custody) -> None:
    """A candidate in a header that is not the key is judged, and passes."""
    await add(custody)
    heard = await hear(custody, b"body", headers=[(b"x-echo", TWINS[0])])
    assert (heard.body, heard.error) == (b"body", None)
    assert pepper_unwraps(custody) == 1


async def test_no_key_is_found_across_headers(custody: Custody) -> None:
    """Two headers of which one begins and the next goes on like the key are no echo."""
    await add(custody)
    headers = [(b"x-first", KEY[:30]), (KEY[30:], b"value")]
    heard = await hear(custody, b"body", headers=headers)
    assert (heard.body, heard.error) == (b"body", None)


async def test_a_compressed_echo_is_cut(custody: Custody) -> None:
    """A gzip'd body is looked into while its bytes pass as they are."""
    await add(custody)
    headers = [(b"Content-Encoding", b"gzip")]
    coded = gzip.compress(b"nothing in it, nothing at all")
    heard = await hear(custody, coded[:9], coded[9:], headers=headers)
    assert (heard.body, heard.error) == (coded, None)
    heard = await hear(custody, gzip.compress(b"Your key is " + KEY), headers=headers)
    assert (heard.body, heard.reason) == (b"", "KEY_ECHOED")


@pytest.mark.parametrize(
    "codings", [[b"br"], [b"gzip", b"gzip"], [b"gzip, br"], [b"deflate", b"identity"]]
)
async def test_a_coding_that_cannot_be_read_is_refused(
    custody: Custody, codings: list[bytes]
) -> None:
    """An answer that cannot be looked into is not begun."""
    await add(custody)
    headers = [(b"content-encoding", coding) for coding in codings]
    heard = await hear(custody, b"body", headers=headers)
    assert (heard.has_head, heard.reason) == (False, "UPSTREAM_ENCODING")


async def test_what_is_not_its_coding_is_cut(custody: Custody) -> None:
    """A body that does not decode ends with the same error, and none of it passes unread."""
    await add(custody)
    heard = await hear(custody, b"plain text", headers=[(b"content-encoding", b"gzip")])
    assert (heard.has_head, heard.body, heard.reason) == (True, b"", "UPSTREAM_ENCODING")


async def test_another_key_of_the_same_kind_passes(custody: Custody) -> None:
    """What has the key's length and end and is not it passes unchanged; the same text again costs
    nothing more.
    """
    await add(custody)
    chunks = [TWINS[0], b" ", TWINS[0] + b" " + TWINS[1], TWINS[0]]
    heard = await hear(custody, *chunks)
    assert (heard.body, heard.error) == (b"".join(chunks), None)
    assert pepper_unwraps(custody) == 2


async def test_candidates_are_bounded(custody: Custody) -> None:
    """A prompt can ask for any number of false keys: HSM operations for one answer are bounded."""
    await add(custody)
    heard = await hear(custody, *TWINS)
    assert heard.body == b"".join(TWINS[:MAX_CANDIDATES])
    assert heard.reason == "ECHO_UNDECIDED"
    assert heard.error is not None
    assert heard.error.metadata == {"cause": "TOO_MANY_CANDIDATES"}
    assert pepper_unwraps(custody) == MAX_CANDIDATES


async def test_without_the_hsm_a_candidate_is_not_delivered(
    custody: Custody, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fail closed: what cannot be told apart from the key is cut, and no RetryInfo is given."""
    await add(custody)
    original = EchoJudge.refuse

    async def without_hsm(self: EchoJudge, candidate: memoryview) -> None:
        custody.wrapper.fault = HsmUnavailable("gone")
        await original(self, candidate)

    monkeypatch.setattr(EchoJudge, "refuse", without_hsm)
    heard = await hear(custody, b"see ", TWINS[0])
    assert (heard.body, heard.reason) == (b"see ", "ECHO_UNDECIDED")
    assert heard.error is not None
    assert heard.error.metadata == {"cause": "MASTER_KEY_UNAVAILABLE"}
    assert heard.error.retry_after_s is None


async def test_a_store_that_lost_its_pepper_gets_no_new_one(
    custody: Custody, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only AddKey makes a pepper: a new one would make every echo look like another key."""
    await add(custody)

    async def none() -> None:
        return None

    monkeypatch.setattr(custody.store, "pepper", none)
    heard = await hear(custody, KEY)
    assert (heard.body, heard.reason) == (b"", "ECHO_UNDECIDED")
    assert heard.error is not None
    assert heard.error.metadata == {"cause": "KEY_RECORD_DAMAGED"}


async def test_only_adding_and_using_a_key_have_the_pepper(custody: Custody) -> None:
    """A Permit for anything else does not open the pepper."""
    await add(custody)
    async with custody.admit(Action.LIST_MASKED) as permit:
        with pytest.raises(PermissionDenied):
            await custody.vault.pepper(permit)


async def test_a_record_without_its_mask_is_damaged(custody: Custody) -> None:
    """Where the record does not say what to look for, nothing is delivered unsearched."""
    await add(custody)
    row = await custody.store.current("acme")
    assert row is not None
    async with custody.admit(Action.WITH_KEY) as permit:
        for mask in ("", "sk-ant-api\N{HORIZONTAL ELLIPSIS}"):
            judge = EchoJudge(custody.vault, permit, replace(row, mask=mask))
            with pytest.raises(DataLoss):
                judge.scanner()


CUT = UpstreamFailed("cut", reason="UPSTREAM_CUT")


async def test_what_came_before_a_cut_is_delivered(custody: Custody) -> None:
    """An upstream cut stays one, behind all that came; but for the begun secret of a key."""
    await add(custody)
    heard = await hear(custody, b"on a bus", CUT)
    assert (heard.body, heard.reason) == (b"on a bus", "UPSTREAM_CUT")
    heard = await hear(custody, b"it is " + KEY[:-1], CUT)
    assert (heard.body, heard.reason) == (b"it is ", "UPSTREAM_CUT")


async def test_chunks_keep_their_bound(custody: Custody) -> None:
    """What was held back and what follows it come in chunks of at most 16 KiB."""
    await add(custody)
    heard = await hear(custody, KEY[:-1], b" " * MAX_CHUNK_BYTES)
    assert heard.body == KEY[:-1] + b" " * MAX_CHUNK_BYTES
    assert [len(chunk) for chunk in heard.chunks] == [MAX_CHUNK_BYTES, len(KEY) - 1]


async def test_an_echo_after_rotation_is_that_of_the_key_that_served(custody: Custody) -> None:
    """Only the key that the request was sent with is looked for."""
    await add(custody)
    heard_first = await hear(custody, KEY)
    await add(custody, TWINS[0])
    heard_second = await hear(custody, KEY, b" ", TWINS[0])
    assert heard_first.reason == heard_second.reason == "KEY_ECHOED"
    assert heard_second.body == KEY + b" "
