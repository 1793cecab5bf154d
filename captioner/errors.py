"""The exceptions of captioner: each message names the thing that is wrong and how to mend it."""


class CaptionerError(Exception):
    """Base of every error that a user's input can cause; the command line prints it in one line."""


class ConfigError(CaptionerError):
    """A configuration key or value that cannot be used."""


class CheckpointError(CaptionerError):
    """A model file that is missing, damaged, foreign or of another version."""


class ImageError(CaptionerError):
    """An image that cannot be opened or is not safe to open."""


class DataError(CaptionerError):
    """A caption file, split or feature cache that cannot be used."""
