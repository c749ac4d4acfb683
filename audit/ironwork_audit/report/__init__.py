"""A readable page for a period of the log (ADR 0026): counted in one pass, with bounded memory."""
