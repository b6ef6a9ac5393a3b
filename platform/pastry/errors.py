"""The one exception for a user's mistakes."""


class PastryError(Exception):
    """A user's mistake. Its text is the whole message; the command line prints it and exits with 2."""

    def __str__(self) -> str:
        # File names that are not UTF-8 hold halves of surrogate pairs, which no terminal or log takes.
        return super().__str__().encode("utf-8", "backslashreplace").decode()


class Interrupted(PastryError):
    """The work was asked to stop, and saved what it had; the same command goes on from there."""
