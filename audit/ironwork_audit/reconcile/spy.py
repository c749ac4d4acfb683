"""Reads the log of OpenSC's pkcs11-spy (0.23): which calls were made to a PKCS#11 module.

Such a log holds PINs, data keys and blobs. Of each line only what is named here is ever kept: the
function, its number and time, the session, the mechanism's name, whether an output was asked for
by its size alone, and the return value.

The recorder prints a call line by line and knows no threads: calls of two lanes at once come out
mixed. How often each function was called stays exact, and so does how many of them were size
queries. Which return value belongs to which call does not, where values differ: it is then unknown.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Final

from ironwork_audit.reconcile.calls import MAX_CALLS, Call, NotARecord, Recorded

_BANNER: Final = b"*************** OpenSC PKCS#11 spy"
_HEAD: Final = re.compile(rb"([0-9]{1,10}): (C_[A-Za-z_]{1,40})")
_TIME: Final = re.compile(rb"([0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3})")
_SESSION: Final = re.compile(rb"\[in\] hSession = 0x([0-9a-f]{1,16})")
_MECHANISM: Final = re.compile(rb"\[in\] pMechanism->type = (CKM_[A-Z0-9_]{1,60}) *")
# A parameter that is not there has the size 0; a result that is only asked for its size has not.
_NO_BUFFER: Final = re.compile(rb"NULL \[size : 0x[0-9A-F]{1,16} \([1-9][0-9]{0,19}\)\]")
_OUTPUT: Final = re.compile(rb"\[out\] (pSignature|pEncryptedData|pData)\[")
# Also behind a part of another thread's line; the text column of a dump is too short to hold it.
_RETURNED: Final = re.compile(rb"Returned:  -?([0-9]{1,20}) CKR_[A-Z0-9_]{2,60}")
_LONGEST_LINE: Final = 64 * 1024
# Threads of one process that may be inside the module at once.
_MOST_OPEN: Final = 256
# Calls that overlap in a chain, so that their ends cannot be told apart.
_LONGEST_CHAIN: Final = 1_000_000
_MOST_MISSING: Final = 1000

# The size query of a function shows by the name of its output.
_OUTPUTS: Final = {b"pSignature": "C_Sign", b"pEncryptedData": "C_Encrypt", b"pData": "C_Decrypt"}
_BY_INIT: Final = {
    "C_EncryptInit": "C_Encrypt",
    "C_DecryptInit": "C_Decrypt",
    "C_SignInit": "C_Sign",
}
# Whatever uses, makes, changes or destroys a key. What we never call is here too: it is then
# nobody's entry.
KEY_FUNCTIONS: Final = frozenset(
    {
        "C_Encrypt",
        "C_EncryptUpdate",
        "C_EncryptFinal",
        "C_Decrypt",
        "C_DecryptUpdate",
        "C_DecryptFinal",
        "C_Sign",
        "C_SignUpdate",
        "C_SignFinal",
        "C_SignRecover",
        "C_Verify",
        "C_VerifyFinal",
        "C_VerifyRecover",
        "C_DigestKey",
        "C_DigestEncryptUpdate",
        "C_DecryptDigestUpdate",
        "C_SignEncryptUpdate",
        "C_DecryptVerifyUpdate",
        "C_GenerateKey",
        "C_GenerateKeyPair",
        "C_WrapKey",
        "C_UnwrapKey",
        "C_DeriveKey",
        "C_CreateObject",
        "C_CopyObject",
        "C_SetAttributeValue",
        "C_DestroyObject",
    }
)


@dataclass(slots=True)
class _Open:
    """A call that has not returned yet."""

    function: str
    line: int
    time_ms: int = -1
    last_ms: int = -1
    session: bytes = b""
    mechanism: str = ""
    is_size_query: bool = False


@dataclass(slots=True)
class _Reader:
    name: str
    zone: tzinfo
    calls: list[Call] = field(default_factory=list)
    ignored: int = 0
    problems: list[str] = field(default_factory=list)
    open: list[_Open] = field(default_factory=list)
    returned: list[bool] = field(default_factory=list)
    mechanisms: dict[tuple[bytes, str], str] = field(default_factory=dict)
    # Calls whose time has not come yet, and the times that have: which is whose shows when each
    # has one, and not even then where threads met.
    timeless: list[_Open] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    next: int = 0
    missing: set[int] = field(default_factory=set)
    time_ms: int = -1

    def take(self, number: int, line: bytes) -> None:
        """One line, without its end."""
        if line.startswith(_BANNER):
            self.finish()
        elif head := _HEAD.fullmatch(line):
            self._enter(number, int(head[1]), head[2].decode())
        elif not self.open:
            if line and not line.startswith(b"Loaded: "):
                raise NotARecord(f"{self.name} line {number}: not a line of pkcs11-spy")
        elif returned := _RETURNED.search(line):
            self._return(returned[1] == b"0")
        else:
            self._detail(number, line)

    def finish(self) -> None:
        """The process ended: what has not returned never will."""
        if self.open:
            self.returned.clear()
            self._close(None)
        if self.missing:
            shown = ", ".join(map(str, sorted(self.missing)[:10]))
            self.problems.append(
                f"{self.name}: {len(self.missing)} calls are missing from the record itself: "
                f"number {shown}"
            )
        self.mechanisms.clear()
        self.missing.clear()
        self.next = 0

    def _enter(self, line: int, number: int, function: str) -> None:
        # Numbers may change places or come twice where threads meet, and are never left out.
        if number >= self.next:
            if number - self.next > _MOST_MISSING:
                raise NotARecord(f"{self.name} line {line}: call {number} after {self.next - 1}")
            if number - self.next + len(self.missing) > _MOST_MISSING:
                raise NotARecord(
                    f"{self.name} line {line}: more than {_MOST_MISSING} calls are missing from it"
                )
            self.missing.update(range(self.next, number))
            self.next = number + 1
        else:
            self.missing.discard(number)
        inside = len(self.open) - len(self.returned)
        if inside >= _MOST_OPEN or len(self.open) >= _LONGEST_CHAIN:
            raise NotARecord(f"{self.name} line {line}: more than {_MOST_OPEN} calls at once")
        self.open.append(_Open(function, line))
        self.timeless.append(self.open[-1])

    def _detail(self, number: int, line: bytes) -> None:
        if time := _TIME.fullmatch(line):
            self._at(number, time[1])
        elif session := _SESSION.fullmatch(line):
            call = self._first(lambda call: not call.session)
            if call is not None:
                call.session = session[1]
        elif mechanism := _MECHANISM.fullmatch(line):
            call = self._first(lambda call: call.function in _BY_INIT and not call.mechanism)
            if call is not None:
                call.mechanism = mechanism[1].decode()
        elif _NO_BUFFER.search(line):
            self._size_query(_OUTPUT.search(line))

    def _size_query(self, named: re.Match[bytes] | None) -> None:
        """Whose it is says the output's name, unless another thread's line came between them: then
        a signature's, which is the one result that is asked for its size here.
        """
        wanted = _OUTPUTS[named[1]] if named else "C_Sign"
        call = self._first(lambda call: call.function == wanted and not call.is_size_query)
        if call is not None:
            call.is_size_query = True

    def _first(self, wanted: Callable[[_Open], bool]) -> _Open | None:
        """Of those that may still be inside."""
        return next((call for call in self.open[-_MOST_OPEN:] if wanted(call)), None)

    def _at(self, number: int, text: bytes) -> None:
        try:
            time = datetime.strptime(text.decode(), "%Y-%m-%d %H:%M:%S.%f")  # noqa: DTZ007  below
        except ValueError:
            raise NotARecord(f"{self.name} line {number}: not a time") from None
        self.time_ms = int(time.replace(tzinfo=self.zone).astimezone(UTC).timestamp() * 1000 + 0.5)
        self.times.append(self.time_ms)
        if len(self.times) >= len(self.timeless):
            self._settle_times()

    def _settle_times(self) -> None:
        for call in self.timeless:
            call.time_ms, call.last_ms = min(self.times), max(self.times)
        self.timeless.clear()
        self.times.clear()

    def _return(self, ok: bool) -> None:
        self.returned.append(ok)
        if len(self.returned) < len(self.open):
            return
        same = len(set(self.returned)) == 1
        self.returned.clear()
        self._close(ok if same else None)

    def _close(self, ok: bool | None) -> None:
        """All open calls have ended; alone, or mixed with each other."""
        if self.times:
            self._settle_times()
        self.timeless.clear()
        mixed = len(self.open) > 1
        for call in self.open:
            used = _BY_INIT.get(call.function)
            if used is not None:
                self.mechanisms[call.session, used] = call.mechanism
            if call.function in KEY_FUNCTIONS and not call.is_size_query:
                self._keep(call, ok, mixed=mixed)
            else:
                self.ignored += call.function in KEY_FUNCTIONS
        if mixed and any(call.function in _BY_INIT for call in self.open):
            # Whose session was initialised for what is not sure any more.
            self.mechanisms.clear()
        self.open.clear()

    def _keep(self, call: _Open, ok: bool | None, *, mixed: bool) -> None:
        if len(self.calls) >= MAX_CALLS:
            raise NotARecord(f"{self.name}: more than {MAX_CALLS} operations; take a part of it")
        if call.time_ms < 0 and self.time_ms < 0:
            raise NotARecord(f"{self.name} line {call.line}: a call without a time")
        mechanism = "" if mixed else self.mechanisms.get((call.session, call.function), "")
        first_ms = call.time_ms if call.time_ms >= 0 else self.time_ms
        last_ms = max(call.last_ms, first_ms)
        place = f"{self.name} line {call.line}"
        self.calls.append(Call(call.function, mechanism, first_ms, last_ms, ok, place))


def read_spy(path: Path, zone: tzinfo = UTC) -> Recorded:
    """A spy's log, of one process or several one after the other. zone: of the times in it, which
    are the local ones of the machine. Raises NotARecord, OSError.
    """
    with path.open("rb") as file:
        return parse_spy(iter(lambda: file.readline(_LONGEST_LINE), b""), path.name, zone)


def parse_spy(lines: Iterable[bytes], name: str, zone: tzinfo = UTC) -> Recorded:
    """The same, of lines with their ends. A line of more than 64 KiB is read as several."""
    reader = _Reader(name, zone)
    number = 0
    for number, line in enumerate(lines, 1):
        reader.take(number, line.rstrip(b"\r\n"))
    reader.finish()
    if not number:
        raise NotARecord(f"{name}: empty")
    return Recorded(reader.calls, reader.ignored, reader.problems)
