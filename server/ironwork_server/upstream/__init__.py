"""The relay to Anthropic and the validator: everything that talks to api.anthropic.com."""

from ironwork_server.upstream.client import HttpUpstream
from ironwork_server.upstream.endpoint import ANTHROPIC, UpstreamEndpoint
from ironwork_server.upstream.proxy import UpstreamProxy
from ironwork_server.upstream.quiet import silence_http_loggers
from ironwork_server.upstream.timeouts import UpstreamTimeouts
from ironwork_server.upstream.validator import AnthropicKeyValidator

__all__ = [
    "ANTHROPIC",
    "AnthropicKeyValidator",
    "HttpUpstream",
    "UpstreamEndpoint",
    "UpstreamProxy",
    "UpstreamTimeouts",
    "silence_http_loggers",
]
