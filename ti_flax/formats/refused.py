"""The exception of the format readers."""


class Refused(Exception):
    """Why a file is refused: the rest of the sentence that begins with its path."""
