"""Reading pkcs11-spy's log: calls, size queries, mixed threads, and nothing of the data."""

import contextlib
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.reconcile_made import NOW_MS, SpyLog, gcm
from ironwork_audit.reconcile.calls import Call, NotARecord, Recorded
from ironwork_audit.reconcile.spy import parse_spy


def read(spy: SpyLog) -> Recorded:
    return parse_spy(spy.bytes_lines(), "spy.log")


def kinds(recorded: Recorded) -> list[tuple[str, str, bool | None]]:
    return [(call.function, call.subject, call.ok) for call in recorded.calls]


def test_calls_with_their_mechanism_time_and_result() -> None:
    """Each operation is one call: its mechanism from the initialisation on the same session."""
    spy = SpyLog()
    gcm(spy, "C_Encrypt", 100)
    gcm(spy, "C_Decrypt", 200, "5 CKR_GENERAL_ERROR")
    recorded = read(spy)
    assert kinds(recorded) == [
        ("C_Encrypt", "CKM_AES_GCM", True),
        ("C_Decrypt", "CKM_AES_GCM", False),
    ]
    assert [call.start_ms - NOW_MS for call in recorded.calls] == [100, 200]
    assert [call.place for call in recorded.calls] == ["spy.log line 14", "spy.log line 31"]
    assert (recorded.ignored, recorded.problems) == (0, [])


def test_size_queries_are_left_out() -> None:
    """A call that only asks for the size of its result is counted, and is no operation."""
    spy = SpyLog()
    spy.init("C_SignInit", "CKM_EDDSA", 1)
    spy.size_query("C_Sign", "pSignature", 2)
    spy.use("C_Sign", 3)
    recorded = read(spy)
    assert kinds(recorded) == [("C_Sign", "CKM_EDDSA", True)]
    assert recorded.ignored == 1


def test_what_uses_no_key_is_no_operation() -> None:
    """Opening, logging in and searching are not operations; wrapping or copying a key is."""
    spy = SpyLog()
    for function in ("C_OpenSession", "C_Login", "C_FindObjects", "C_GetAttributeValue"):
        spy.use(function, 1)
    assert kinds(read(spy)) == []
    for function in ("C_WrapKey", "C_CopyObject", "C_DeriveKey", "C_DecryptFinal"):
        spy.use(function, 2)
    assert [name for name, _, _ in kinds(read(spy))] == [
        "C_WrapKey",
        "C_CopyObject",
        "C_DeriveKey",
        "C_DecryptFinal",
    ]


def test_threads_that_are_mixed() -> None:
    """Of calls that were inside together the number stays exact, size queries too; a mechanism
    that may be the other's is unknown, and so is a result where the results differ.
    """
    spy = SpyLog()
    spy.enter("C_Decrypt", 1)
    spy.enter("C_Sign", 1)
    spy.lines.append("[out] pSignature[*pulSignatureLen] NULL [size : 0x40 (64)]")
    spy.enter("C_Decrypt", 2)
    spy.returned()
    spy.returned("5 CKR_GENERAL_ERROR")
    spy.returned()
    recorded = read(spy)
    assert kinds(recorded) == [("C_Decrypt", "", None)] * 2
    assert recorded.ignored == 1


def test_lines_that_are_torn_by_threads() -> None:
    """A line that another thread's line came into the middle of loses no call's end and no size
    query; the calls after it are told apart again.
    """
    spy = SpyLog()
    spy.enter("C_Decrypt", 1)
    spy.enter("C_Sign", 1)
    spy.lines += [
        "[in] pEncryptedData[ulEncryptedDataLen] [out] pSignature[*pulSignatureLen] 00007f / 48",
        "    00000000  00 01                                            ..",
        "NULL [size : 0x40 (64)]",
        "[out] pData[*pulDataLen] Returned:  0 CKR_OK",
        "Returned:  0 CKR_OK",
    ]
    gcm(spy, "C_Decrypt", 2)
    recorded = read(spy)
    assert kinds(recorded) == [("C_Decrypt", "", True), ("C_Decrypt", "CKM_AES_GCM", True)]
    assert recorded.ignored == 1


def test_times_that_changed_places() -> None:
    """Where two calls are told before their times, each may have either."""
    spy = SpyLog()
    spy.enter("C_Decrypt", 500)
    time, session = spy.lines[-2:]
    del spy.lines[-2:]
    spy.enter("C_Decrypt", 1)
    spy.lines += [time, session]
    spy.returned()
    spy.returned()
    times = [(call.start_ms - NOW_MS, call.end_ms - NOW_MS) for call in read(spy).calls]
    assert times == [(1, 500)] * 2


def test_a_long_chain_of_overlapping_calls() -> None:
    """Under load the module may never be empty: however long, each call is counted."""
    spy = SpyLog()
    spy.enter("C_Decrypt", 0)
    for at in range(1, 2000):
        spy.enter("C_Decrypt", at)
        spy.returned()
    spy.returned()
    recorded = read(spy)
    assert [call.ok for call in recorded.calls] == [True] * 2000
    assert [call.start_ms - NOW_MS for call in recorded.calls] == list(range(2000))


def test_a_process_that_was_killed() -> None:
    """A call without a return is a call whose result is not known; the next process begins anew."""
    spy = SpyLog()
    spy.init("C_DecryptInit", "CKM_AES_GCM", 1)
    spy.enter("C_Decrypt", 2)
    again = SpyLog()
    gcm(again, "C_Decrypt", 3)
    recorded = parse_spy([*spy.bytes_lines(), *again.bytes_lines()], "spy.log")
    assert kinds(recorded) == [
        ("C_Decrypt", "CKM_AES_GCM", None),
        ("C_Decrypt", "CKM_AES_GCM", True),
    ]
    assert recorded.problems == []


def test_calls_that_were_cut_out_of_it() -> None:
    """The recorder numbers its calls: a number that is left out is named."""
    spy = SpyLog()
    gcm(spy, "C_Encrypt", 1)
    spy.number += 2
    gcm(spy, "C_Encrypt", 2)
    assert read(spy).problems == [
        "spy.log: 2 calls are missing from the record itself: number 2, 3"
    ]


def test_numbers_that_changed_places() -> None:
    """Threads may print their numbers in another order, or one twice: nothing is missing then."""
    spy = SpyLog()
    for number in (1, 0, 2, 2, 3):
        spy.number = number
        spy.use("C_Sign", 1)
    recorded = read(spy)
    assert (len(recorded.calls), recorded.problems) == (5, [])


def test_the_recorder_s_times_are_local() -> None:
    """The machine's time zone can be given."""
    spy = SpyLog()
    spy.use("C_Sign", 0)
    (call,) = parse_spy(spy.bytes_lines(), "spy.log", ZoneInfo("Europe/Berlin")).calls
    assert call.start_ms == NOW_MS - 3600 * 1000


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "spy.log: empty"),
        ([b"{}\n"], "spy.log line 1: not a line of pkcs11-spy"),
        ([b"\n", b"0: C_Sign\n", b"2026-13-23 12:00:00.000\n"], "spy.log line 3: not a time"),
        ([b"0: C_Sign\n", b"Returned:  0 CKR_OK\n"], "spy.log line 1: a call without a time"),
        ([b"5000: C_Sign\n"], "spy.log line 1: call 5000 after -1"),
        ([b"%d: C_Sign\n" % number for number in range(300)], "more than 256 calls at once"),
    ],
)
def test_what_is_no_such_log(lines: list[bytes], said: str) -> None:
    """Refused by its place; what stands there is never repeated."""
    with pytest.raises(NotARecord, match=said):
        parse_spy(lines, "spy.log")


SECRET = st.text("abcdefgh0123456789", min_size=12, max_size=40)


@settings(deadline=None)  # a slow machine is no failure
@given(SECRET, st.sampled_from(["C_Login", "C_Encrypt", "C_Decrypt", "C_Sign", "C_SetPIN"]))
def test_data_is_discarded(secret: str, function: str) -> None:
    """Nothing that was read holds a PIN, a plaintext or a blob, in whatever form it was printed."""
    spy = SpyLog()
    spy.init(f"{function}Init", "CKM_AES_GCM", 1)
    spy.use(function, 2, secret=secret)
    shown = repr(read(spy))
    assert secret not in shown
    assert secret.encode().hex() not in shown.lower().replace(" ", "")


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(0, 20))
def test_no_bytes_break_the_reader(junk: bytes, at: int) -> None:
    """Whatever stands in the file, it is read or refused as a record."""
    spy = SpyLog()
    gcm(spy, "C_Decrypt", 1)
    lines = spy.bytes_lines()
    lines[at % len(lines)] = junk
    with contextlib.suppress(NotARecord):
        recorded = parse_spy(lines, "spy.log")
        assert all(isinstance(call, Call) for call in recorded.calls)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["C_Encrypt", "C_Decrypt", "C_Sign", "query"]), max_size=30))
def test_every_operation_is_counted_once(functions: list[str]) -> None:
    """As many calls as were made, in their order, and as many size queries."""
    spy = SpyLog()
    spy.use("C_GetInfo", 0)
    for at, function in enumerate(functions):
        if function == "query":
            spy.size_query("C_Sign", "pSignature", at)
        else:
            spy.use(function, at)
    recorded = read(spy)
    made = [function for function in functions if function != "query"]
    assert [call.function for call in recorded.calls] == made
    assert recorded.ignored == len(functions) - len(made)
    assert all(one.start_ms < other.start_ms for one, other in pairwise(recorded.calls))
