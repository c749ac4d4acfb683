"""The HTTP libraries that there is a face for; the transports' tests run with each."""

from dataclasses import dataclass
from typing import Any

import httpx
import httpx2

import ironwork_client
import ironwork_client.httpx

# What the tests use of a client, a response and a transport is the same in both.
Client = httpx2.Client | httpx.Client
AsyncClient = httpx2.AsyncClient | httpx.AsyncClient
Response = httpx2.Response | httpx.Response
Transport = ironwork_client.WithKeyTransport | ironwork_client.httpx.WithKeyTransport
AsyncTransport = ironwork_client.AsyncWithKeyTransport | ironwork_client.httpx.AsyncWithKeyTransport


@dataclass(frozen=True)
class Library:
    """http: the library's module."""

    name: str
    http: Any
    transport: type[Any]
    async_transport: type[Any]


LIBRARIES = tuple(
    Library(http.__name__, http, faces.WithKeyTransport, faces.AsyncWithKeyTransport)
    for http, faces in ((httpx2, ironwork_client), (httpx, ironwork_client.httpx))
)
