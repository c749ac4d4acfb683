"""Transports for HTTP libraries: faces over two stream cores and one mapper.

Those for httpx2 are here; those for httpx, an extra, in `ironwork_client.httpx`.
"""

from ironwork_client.transport._httpx2 import AsyncWithKeyTransport, WithKeyTransport
from ironwork_client.transport._values import AuditReference, CallReport, Usage

__all__ = ["AsyncWithKeyTransport", "AuditReference", "CallReport", "Usage", "WithKeyTransport"]
