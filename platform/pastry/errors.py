"""The one exception for a user's mistakes."""


class PastryError(Exception):
    """A user's mistake. Its text is the whole message; the command line prints it and exits with 2."""
