"""What an agent asks for, judged before anything is decrypted.

A request passes exactly as it was given or not at all; only Accept-Encoding is narrowed (ADR
0008). There is no normalisation: what would need it has two spellings, and is refused, so that
this service and Anthropic cannot read one path as two.
"""

import re
from collections.abc import Sequence

from ironwork_server.core.errors import FieldViolation, InvalidRequest
from ironwork_server.core.headers import request_headers, response_headers
from ironwork_server.core.routes import Route, RouteTable
from ironwork_server.core.values import ScreenedRequest

__all__ = ["response_headers", "screen"]

MAX_PATH = 1024
MAX_QUERY = 4096

# RFC 3986, sections 3.3 and 3.4, less what has a meaning of its own somewhere: `@` (userinfo),
# `;` (parameters that some servers cut off).
_PATH = re.compile(r"/(?:[A-Za-z0-9._~!$&'()*+,=:/-]|%[0-9A-Fa-f]{2})*")
# Characters that change a path's meaning once decoded: controls, blanks, `"`, `#`, `%`, `.`, `/`,
# `;`, `?`, `@`, `\`, and everything that is not ASCII.
_HIDDEN = re.compile(r"%(?:[01][0-9A-F]|2[0235EF]|3[BF]|40|5C|7F|[89A-F][0-9A-F])", re.IGNORECASE)
_QUERY = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*")
_HIDDEN_CONTROL = re.compile(r"%(?:[01][0-9A-F]|7F)", re.IGNORECASE)


def screen(
    *,
    method: str,
    path: str,
    query: str,
    headers: Sequence[tuple[str, bytes]],
    content_length: int | None,
    routes: RouteTable,
) -> ScreenedRequest:
    """The request to send. content_length None: the body's length is not known beforehand.

    Raises InvalidRequest with reason METHOD_NOT_ALLOWED, PATH_MALFORMED, PATH_NOT_ALLOWED,
    QUERY_MALFORMED, HEADER_MALFORMED, HEADER_REFUSED, HEADERS_TOO_LARGE, BODY_TOO_LARGE or
    BODY_NOT_ALLOWED. No message repeats what was sent.
    """
    _check_path(path)
    route = _find_route(path, routes)
    _check_method(method, route)
    _check_query(query)
    has_body = method == "POST"
    _check_length(content_length, has_body=has_body, max_body=route.max_body)
    return ScreenedRequest(
        method=method,
        path=path,
        query=query,
        headers=request_headers(headers),
        content_length=content_length if has_body else None,
        has_body=has_body,
        max_body=route.max_body,
        route=route.name,
    )


def _check_path(path: str) -> None:
    if len(path) > MAX_PATH:
        raise _malformed("path", f"must have at most {MAX_PATH} bytes")
    if not path.startswith("/"):
        raise _malformed("path", "must begin with `/`: no scheme, no host")
    if _PATH.fullmatch(path) is None:
        raise _malformed(
            "path",
            "must hold only path characters of RFC 3986, without `@` or `;`; the query has a "
            "field of its own",
        )
    if _HIDDEN.search(path):
        raise _malformed("path", "must not percent-encode a character that structures a path")
    if any(segment in {"", ".", ".."} for segment in path[1:].split("/")):
        raise _malformed("path", "must not hold empty, `.` or `..` segments, nor end with `/`")


def _find_route(path: str, routes: RouteTable) -> Route:
    route = routes.match(path)
    if route is not None:
        return route
    group = routes.group_off(path)
    if group is None:
        raise _refusal("path", "is not on the list of API paths", "PATH_NOT_ALLOWED")
    raise _refusal(
        "path",
        f"belongs to the group {group}, which this service's settings leave off",
        "PATH_NOT_ALLOWED",
        group=group,
    )


def _check_method(method: str, route: Route) -> None:
    if method in route.methods:
        return
    allowed = ", ".join(sorted(route.methods))
    raise _refusal(
        "method", f"must be one of {allowed} for this path", "METHOD_NOT_ALLOWED", allowed=allowed
    )


def _check_query(query: str) -> None:
    if len(query) > MAX_QUERY:
        raise _malformed("query", f"must have at most {MAX_QUERY} bytes")
    if _QUERY.fullmatch(query) is None:
        raise _malformed(
            "query", "must hold only query characters of RFC 3986, percent-encoded where needed"
        )
    if _HIDDEN_CONTROL.search(query):
        raise _malformed("query", "must not hold percent-encoded control characters")


def _check_length(content_length: int | None, *, has_body: bool, max_body: int) -> None:
    if content_length is None:
        return
    if content_length < 0:
        raise InvalidRequest.field("content_length", "must not be negative")
    if content_length > 0 and not has_body:
        raise _refusal("content_length", "only POST has a body", "BODY_NOT_ALLOWED")
    if content_length > max_body:
        raise _refusal(
            "content_length",
            f"must be at most {max_body} bytes for this path",
            "BODY_TOO_LARGE",
            max_bytes=str(max_body),
        )


def _malformed(field: str, description: str) -> InvalidRequest:
    return InvalidRequest.field(field, description, reason=f"{field.upper()}_MALFORMED")


def _refusal(field: str, description: str, reason: str, **metadata: str) -> InvalidRequest:
    return InvalidRequest(
        f"{field}: {description}",
        reason=reason,
        metadata={"field": field, **metadata},
        violations=(FieldViolation(field, description),),
    )
