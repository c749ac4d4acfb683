"""Transports for HTTP libraries: faces over two stream cores and one mapper."""

from ironwork_client.transport._httpx2_async import AsyncWithKeyTransport
from ironwork_client.transport._httpx2_sync import WithKeyTransport
from ironwork_client.transport._values import AuditReference, CallReport, Usage

__all__ = ["AsyncWithKeyTransport", "AuditReference", "CallReport", "Usage", "WithKeyTransport"]
