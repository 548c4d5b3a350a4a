"""Errors of video and sound files."""


class VideoError(ValueError):
    """A video that cannot be read or written; the message names the file and says why."""


class AudioError(ValueError):
    """Raised where sound cannot be copied; the message names the file and says why."""
