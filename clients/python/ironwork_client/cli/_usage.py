"""A command that cannot be carried out as it was typed."""


class UsageError(Exception):
    """Its text says what is wrong and how to mend it. Exit code 2."""
