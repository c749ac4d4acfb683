"""What verifying needs of one entry, quickly: most entries by one regular expression, the others by
the strict parser.

The expression, with the checks after it, takes only what `parse` takes too: what `render` makes of
an API Activity with plain printable ASCII, from the same allow list (`fields`). Whatever it does
not match is given to `parse`, which decides. So it may be narrow, and must never be wide; a test
holds it to that.
"""

import functools
import ipaddress
import json
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from ironwork_audit import fields
from ironwork_audit.classes import API_ACTIVITY, Kind, may_show
from ironwork_audit.event import INTENT, OUTCOME
from ironwork_audit.fields import FieldRefused, Flag, Number, Rule, Text
from ironwork_audit.ocsf import OCSF_VERSION, PRODUCT, STATUS
from ironwork_audit.parse import NotAnEvent, parse


class Facts(NamedTuple):
    """What an entry says of its place. time_ms: since 1970. call: operation and correlation id,
    the same for an intent and its outcome. intent_index: of an outcome. reason: '' where there is
    none.
    """

    time_ms: int
    call: bytes
    is_intent: bool
    intent_index: int | None
    reason: str


# Printable ASCII that stands in JSON as it is.
_PLAIN: Final = [chr(code) for code in range(0x20, 0x7F) if chr(code) not in '"\\']
_STARRED: Final = re.compile(r"(\[[^]]+\])([*+])")
_NOTHING: Final = re.compile(b"(?!)")
_CREDENTIAL: Final = re.compile(rb"sk-ant-[A-Za-z0-9_-]{12}")
_MASK: Final = "(?:sk-ant-[a-z0-9-]{1,8}\xe2\x80\xa6[!#-\\[\\]-~]{4})?"
# Longer numbers, and times from the year 5138 on, are left to parse.
_TIME: Final = "[1-9][0-9]{0,13}"
_INT: Final = "(?:0|[1-9][0-9]{0,17})"
_PORT: Final = (
    "(?:0|[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
)
# Of an API Activity: severity_id, status, status_id. 2 Low for a failure, 1 Informational.
_STATUSES: Final = frozenset(
    (b"2" if success is False else b"1", status.encode(), str(status_id).encode())
    for success, (status_id, status) in STATUS.items()
)


class EntryChecker:
    """Checks the entries of one log. Safe for concurrent use."""

    def __init__(self, origin: str) -> None:
        self._origin = origin
        # A key may have a name that no log of ours has: then no entry is one of that log.
        is_ours = fields.ORIGIN.pattern.fullmatch(origin) is not None
        self._match = (_compile(origin) if is_ours else _NOTHING).fullmatch

    def check(self, entry: bytes, index: int) -> Facts:
        """The entry's facts. NotAnEvent where it is not this log's entry of this index."""
        match = self._match(entry)
        if match is None or (b"sk-ant-" in entry and _CREDENTIAL.search(entry)):
            return self._strictly(entry, index)
        operation, correlation, sequence, address, time, intent, phase, reason = match.group(
            "op", "cid", "seq", "ip6", "time", "intent", "phase", "reason"
        )
        said = match.group("op", "aid", "activity", "service", "type")
        status = match.group("severity", "status", "sid")
        if (
            (intent is not None) is not (phase == b"outcome")
            or int(sequence) != index
            or status not in _STATUSES
            or not _is_kind(*said)
            or (address is not None and not _is_address(address))
        ):
            return self._strictly(entry, index)
        return Facts(
            int(time),
            operation + b" " + correlation,
            phase == b"intent",
            None if intent is None else int(intent),
            "" if reason is None else reason.decode(),
        )

    def _strictly(self, entry: bytes, index: int) -> Facts:
        parsed = parse(entry)
        if parsed.origin != self._origin:
            raise NotAnEvent("metadata.log_name: not this log's origin")
        if parsed.sequence != index:
            raise NotAnEvent(f"metadata.sequence: is {parsed.sequence}, not the entry's index")
        event = parsed.event
        time_ms = json.loads(entry)["time"]
        call = f"{event.operation} {event.correlation_id}".encode()
        outcome = event.intent_index if event.phase == OUTCOME else None
        return Facts(time_ms, call, event.phase == INTENT, outcome, event.reason)


@functools.lru_cache(maxsize=4096)
def _is_address(text: bytes) -> bool:
    """Whether it is an IPv6 address as to_endpoint writes one."""
    try:
        address = ipaddress.IPv6Address(text.decode())
    except ValueError:
        return False
    return str(address).encode() == text and address.ipv4_mapped is None


@functools.lru_cache(maxsize=4096)
def _is_kind(operation: bytes, id_: bytes, activity: bytes, service: bytes, type_: bytes) -> bool:
    """Whether the operation may be shown as this API Activity, and is so in each of its members."""
    try:
        kind = Kind(API_ACTIVITY, (int(id_), activity.decode()), service.decode())
    except FieldRefused:
        return False
    return str(kind.type_uid).encode() == type_ and may_show(operation.decode(), kind)


def _compile(origin: str) -> re.Pattern[bytes]:
    resource = r'\{{"type":"{}","uid":"{}"\}}'
    key = resource.format("key", _text(fields.KEY_ID, empty=False))
    octet = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
    product = re.escape(json.dumps(PRODUCT, sort_keys=True, separators=(",", ":")))
    principal = _text(fields.PRINCIPAL, empty=False)
    parts = [
        rf'\{{"activity_id":(?P<aid>[1-9][0-9]?),"activity_name":"(?P<activity>[A-Za-z]{{1,16}})","actor":\{{(?:'
        rf'"app_name":"ironwork-server"|"user":\{{"uid":"{principal}"\}})\}},',
        rf'"api":\{{"operation":"(?P<op>{_text(fields.OPERATION)})",',
        rf'"service":\{{"name":"(?P<service>{_text(fields.SERVICE)})"\}}\}},',
        r'"category_uid":6,"class_uid":6003,',
        rf'"metadata":\{{"correlation_uid":"(?P<cid>{_text(fields.CORRELATION_ID)})",',
        rf'"event_code":"(?P=op)","log_name":"{re.escape(origin)}","logged_time":{_TIME},',
        rf'"product":{product},"sequence":(?P<seq>{_INT}),',
        rf'(?:"tenant_uid":"(?P<ws>{_text(fields.WORKSPACE, empty=False)})",)?',
        rf'"version":"{re.escape(OCSF_VERSION)}"\}},',
        rf'(?(ws)"resources":\[{resource.format("workspace", "(?P=ws)")}(?:,{key})?\],',
        rf'|(?:"resources":\[{key}\],)?)',
        r'"severity_id":(?P<severity>[12]),"src_endpoint":\{(?:"svc_name":"ironwork-server"',
        rf'|"ip":"(?:{octet}(?:\.{octet}){{3}}|(?P<ip6>[0-9a-f:.]{{2,45}}))","port":{_PORT}',
        rf'|"name":"(?!ipv[46]:){_text(fields.PEER, empty=False)}")\}},',
        r'"status":"(?P<status>[A-Z][a-z]{1,15})",',
        rf'(?:"status_detail":"(?P<reason>{_text(fields.REASON, empty=False)})",)?',
        rf'"status_id":(?P<sid>[0-2]),"time":(?P<time>{_TIME}),"type_uid":(?P<type>{_INT}),',
        rf'"unmapped":\{{{_unmapped()}\}}\}}',
    ]
    # latin-1: each character of these texts stands for one byte.
    return re.compile("".join(parts).encode("latin-1"))


def _unmapped() -> str:
    """The flat members in canonical order, all optional but the phase, from the allow list."""
    members = {name: _value(rule) for name, rule in fields.DETAILS.items()}
    # Unlike a detail, these are left out where they are empty.
    for name, rule in (("agent", fields.CLAIM), ("role", fields.ROLE), ("task", fields.CLAIM)):
        members[name] = f'"{_text(rule, empty=False)}"'
    members["intent_index"] = f"(?P<intent>{_INT})"
    before, after = [], []
    for name, value in sorted(members.items()):
        if value is None:
            continue
        if name < "phase":
            before.append(f'(?:"{name}":{value},)?')
        else:
            after.append(f'(?:,"{name}":{value})?')
    return f'{"".join(before)}"phase":"(?P<phase>intent|outcome|event)"{"".join(after)}'


def _value(rule: Rule) -> str | None:
    match rule:
        case Flag():
            return "(?:true|false)"
        case Number(largest=largest):
            # As many digits as can never be too large.
            digits = len(str(largest + 1)) - 1
            return f"(?:0|[1-9][0-9]{{0,{digits - 1}}})"
        case Text():
            return _text_value(rule)


def _text_value(rule: Text) -> str | None:
    try:
        return f'"{_text(rule)}"'
    except ValueError:
        return None


def _text(rule: Text, *, empty: bool = True) -> str:
    """A rule as an expression over bytes that stand for themselves in JSON. ValueError for a form
    that is not known here: such a value is left to parse.
    """
    pattern = rule.pattern.pattern
    if pattern == fields.MASK:
        return _MASK
    if pattern == fields.WORD:
        return f"[A-Za-z][A-Za-z0-9_.-]{{0,{rule.longest - 1}}}"
    starred = _STARRED.fullmatch(pattern)
    if starred is None:
        raise ValueError("not of the form [characters]*")
    # The characters one by one, so that nothing depends on how the class is written.
    characters = _class(character for character in _PLAIN if re.fullmatch(starred[1], character))
    least = 0 if starred[2] == "*" and empty else 1
    return f"{characters}{{{least},{rule.longest}}}"


def _class(characters: Iterable[str]) -> str:
    return "[" + "".join(f"\\x{ord(character):02x}" for character in characters) + "]"
