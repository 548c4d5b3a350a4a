"""Video files in and out, streamed: frames are uint8 RGB (H, W, 3), the model's video float (3, F, H, W) in [-1, 1].

What comes back, by rule:
- Every stored frame once, in the order shown; an empty packet, which repeats a frame, gives none. Frames of variable
  duration become evenly spaced, at as many per second as make the whole as long as it was. A file that keeps to its
  nominal rate, up to what its timestamps are rounded to, has exactly that (`timing.py`).
- Turned and mirrored as the file's display matrix or the picture's EXIF data says. Pixels count as square.
- A file that ends early, or is damaged, gives all frames up to there and then an error that says how many there were.
  Where the decoder makes up for damage, `VideoReader.damaged_frames` says so, and ``strict`` makes it an error.
- Written: H.264, BT.709 colours; even sizes as yuv420p, which plays everywhere, odd sizes as yuv444p, since yuv420p has
  no odd sizes and no pixel is to be lost. Sound is left out unless asked for, then copied as it is from the first
  audio track of a file, from the first picture to the end of the last, to within a packet of it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tivtok.video.audio import AudioCopy
    from tivtok.video.errors import AudioError, VideoError
    from tivtok.video.find import VIDEO_SUFFIXES, LeftOut, find_videos, search_folder
    from tivtok.video.frames import fit, frames_to_video, resize, to_float, video_to_frames
    from tivtok.video.reader import VideoReader
    from tivtok.video.writer import MAX_FPS, MIN_FPS, VideoWriter

__all__ = [
    "MAX_FPS",
    "MIN_FPS",
    "VIDEO_SUFFIXES",
    "AudioCopy",
    "AudioError",
    "LeftOut",
    "VideoError",
    "VideoReader",
    "VideoWriter",
    "find_videos",
    "fit",
    "frames_to_video",
    "resize",
    "search_folder",
    "to_float",
    "video_to_frames",
]

_MODULES = {
    "tivtok.video.audio": ("AudioCopy",),
    "tivtok.video.errors": ("AudioError", "VideoError"),
    "tivtok.video.find": ("VIDEO_SUFFIXES", "LeftOut", "find_videos", "search_folder"),
    "tivtok.video.frames": ("fit", "frames_to_video", "resize", "to_float", "video_to_frames"),
    "tivtok.video.reader": ("VideoReader",),
    "tivtok.video.writer": ("MAX_FPS", "MIN_FPS", "VideoWriter"),
}


def __getattr__(name: str) -> object:
    """Imported on first use: who only names files or tensors needs no FFmpeg."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
