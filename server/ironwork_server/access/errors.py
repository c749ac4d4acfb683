"""The one error of configured files and settings; callers never see it, operators do."""


class AccessConfigurationError(Exception):
    """A file or setting of access control is wrong.

    source: what to mend (a setting's name, a rule, a file with its line). problem: what is wrong
    with it and how to mend it. Neither holds a private key or any part of one.
    """

    def __init__(self, source: str, problem: str) -> None:
        super().__init__(f"{source}: {problem}")
        self.source = source
        self.problem = problem
