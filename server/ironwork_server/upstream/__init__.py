"""Everything that talks to api.anthropic.com. The validator is imported from its own module: it
loads Anthropic's SDK, which takes longer than all else that the service loads.
"""

from ironwork_server.upstream.client import HttpUpstream
from ironwork_server.upstream.endpoint import ANTHROPIC, UpstreamEndpoint
from ironwork_server.upstream.proxy import UpstreamProxy
from ironwork_server.upstream.quiet import silence_http_loggers
from ironwork_server.upstream.timeouts import UpstreamTimeouts

__all__ = [
    "ANTHROPIC",
    "HttpUpstream",
    "UpstreamEndpoint",
    "UpstreamProxy",
    "UpstreamTimeouts",
    "silence_http_loggers",
]
