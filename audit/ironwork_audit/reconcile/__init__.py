"""Holding the log against what others recorded: the HSM's own log, a cloud's, the HSM process's,
the store (ADR 0026)."""
