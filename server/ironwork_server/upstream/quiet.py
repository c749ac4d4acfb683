"""Silence for the HTTP libraries' loggers, whose DEBUG output holds headers and bodies."""

import logging

_LOGGERS = ("anthropic", "httpx2", "httpcore2", "hpack", "h11", "h2")


def silence_http_loggers() -> None:
    """Make nothing from these libraries reach any handler but their own, at any level.

    Called when logging is configured. A child's record climbs to its
    library's root logger and no further, whatever levels are set later or by ANTHROPIC_LOG.
    """
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.CRITICAL + 1)
        logger.propagate = False
        logger.handlers = [logging.NullHandler()]
