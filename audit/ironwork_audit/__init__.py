"""The audit log's format: pure functions over values and bytes, without IO.

What an auditor's tool and the server share. The allow list of fields is `ironwork_audit.fields`.
"""

from ironwork_audit.event import EVENT, INTENT, OUTCOME, Event
from ironwork_audit.fields import DETAILS, FieldRefused, fits
from ironwork_audit.file_format import WrongHeader, header, parse_header
from ironwork_audit.ocsf import MAX_ENTRY_BYTES, OCSF_VERSION, render
from ironwork_audit.parse import NotAnEvent, ParsedEvent, Summary, parse, summarize

__all__ = [
    "DETAILS",
    "EVENT",
    "INTENT",
    "MAX_ENTRY_BYTES",
    "OCSF_VERSION",
    "OUTCOME",
    "Event",
    "FieldRefused",
    "NotAnEvent",
    "ParsedEvent",
    "Summary",
    "WrongHeader",
    "fits",
    "header",
    "parse",
    "parse_header",
    "render",
    "summarize",
]
