"""Entries as ArcSight Common Event Format (CEF, format version 0), for systems without OCSF.

CEF:0|vendor|product|version|signature id|name|severity|key=value key=value …
"""

import json
import re
from typing import Any, Final

from ironwork_audit.ocsf import OCSF_VERSION, PRODUCT
from ironwork_audit.parse import NotAnEvent

# OCSF's severity_id (1 Informational, 2 Low, 3 Medium) on CEF's scale of 0 to 10.
_SEVERITY: Final = {1: 1, 2: 4, 3: 6}
_OUTCOME: Final = {1: "success", 2: "failure"}
_NOT_IN_HEADER: Final = re.compile(r"([\\|])")
_NOT_IN_EXTENSION: Final = re.compile(r"([\\=])")
_LINE_ENDS: Final = {0x0A: "\\n", 0x0D: "\\r"}


def to_cef(entry: bytes) -> str:
    """One line without its end. Raises NotAnEvent for what is no entry.

    The device's own names where CEF has them (rt, suser, src, spt, outcome, reason, externalId);
    cs1 to cs5 with their labels for workspace, key, correlation id, phase and origin; every other
    value of `unmapped` under its own name with the prefix `ironwork` (`ironworkHttpStatus`).
    """
    try:
        document = json.loads(entry)
        return _header(document) + " ".join(
            f"{name}={_extension(value)}" for name, value in _values(document).items()
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise NotAnEvent("entry: a member is missing or of a wrong type") from None


def _header(document: dict[str, Any]) -> str:
    operation = document["metadata"]["event_code"]
    name = f"{operation} {document['unmapped']['phase']}"
    severity = str(_SEVERITY[document["severity_id"]])
    vendor, product = PRODUCT["vendor_name"], PRODUCT["name"]
    parts = [vendor, product, OCSF_VERSION, operation, name, severity]
    return "CEF:0|" + "".join(_NOT_IN_HEADER.sub(r"\\\1", part) + "|" for part in parts)


def _values(document: dict[str, Any]) -> dict[str, Any]:
    metadata, unmapped, peer = document["metadata"], document["unmapped"], document["src_endpoint"]
    user = document["user"] if "user" in document else document.get("actor", {}).get("user", {})
    keys = [item["uid"] for item in document.get("resources", ()) if item["type"] == "key"]
    labelled = {
        "workspace": metadata.get("tenant_uid"),
        "key": keys[0] if keys else unmapped.get("key_id"),
        "correlation": metadata["correlation_uid"],
        "phase": unmapped["phase"],
        "origin": metadata["log_name"],
    }
    values = {
        "rt": document["time"],
        "externalId": metadata["sequence"],
        "outcome": _OUTCOME.get(document["status_id"]),
        "reason": document.get("status_detail"),
        "suser": user.get("uid"),
        "src": peer.get("ip"),
        "spt": peer.get("port"),
    }
    for number, (label, value) in enumerate(labelled.items(), 1):
        if value:
            values |= {f"cs{number}Label": label, f"cs{number}": value}
    for name, value in unmapped.items():
        if name not in {"phase", "key_id"}:
            values["ironwork" + name.title().replace("_", "")] = value
    return {name: value for name, value in values.items() if value is not None and value != ""}


def _extension(value: str | int) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return _NOT_IN_EXTENSION.sub(r"\\\1", text).translate(_LINE_ENDS)
