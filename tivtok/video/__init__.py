"""Video files in and out, streamed: frames are uint8 RGB (H, W, 3), the model's video float (3, F, H, W) in [-1, 1].

What comes back, by rule:
- Every stored frame once, in the order shown. Frames of variable duration become evenly spaced at the average rate.
- Rotation from the file's display matrix is applied (in quarter turns). Pixels count as square.
- A file that ends early, or is damaged, gives all frames up to there and then an error that says how many there were.
- Written: H.264, BT.709 colours; even sizes as yuv420p, which plays everywhere, odd sizes as yuv444p, since yuv420p has
  no odd sizes and no pixel is to be lost. Sound is left out unless asked for, then copied as it is from the first
  audio track of a file, up to the end of the pictures.
"""

from tivtok.video.audio import AudioCopy
from tivtok.video.errors import AudioError, VideoError
from tivtok.video.find import VIDEO_SUFFIXES, find_videos
from tivtok.video.frames import fit, frames_to_video, resize, video_to_frames
from tivtok.video.reader import VideoReader
from tivtok.video.writer import MAX_FPS, MIN_FPS, VideoWriter

__all__ = [
    "MAX_FPS",
    "MIN_FPS",
    "VIDEO_SUFFIXES",
    "AudioCopy",
    "AudioError",
    "VideoError",
    "VideoReader",
    "VideoWriter",
    "find_videos",
    "fit",
    "frames_to_video",
    "resize",
    "video_to_frames",
]
