"""Presentation times of a video's frames, in one place for reading, writing, sound and training.

It is read from the timestamps of the packets, and nothing is decoded. An MP4 whose table of samples has them evenly
spaced says all in its header; of any other file every packet is read once, which costs as much as reading the file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

# What timestamps (Matroska's) and times in lists are rounded to, in seconds.
ROUNDING = Fraction(1, 1000)

# So much shorter than the others the last frame may be by what its file says, in seconds, for the rate to be theirs.
SHORT_LAST = Fraction(1, 10)

# A file whose clock goes back by more than this many seconds is several files joined end to end.
SET_BACK = Fraction(1, 10)

# A step forward of more than this many seconds is a broken clock and no pause.
LONGEST_PAUSE = 86_400

# Formats without timestamps of their own: FFmpeg makes some up from the order in which frames are stored.
UNTIMED_FORMATS = frozenset({"avi"})


@dataclass(frozen=True, eq=False)
class Timeline:
    """Presentation times of frames, and whether they tell frames apart.

    Attributes:
        times: int64 (n,), ascending, in ticks of the file's clock; without usable timestamps, frame numbers.
        tick: seconds, None when the file has neither timestamps nor a rate.
        rate: frames per second: the nominal one where frames keep to it, or else frames over duration; None as above.
        by_time: each frame has a timestamp of its own, under which a packet with it can be looked for.
        jumps: seconds to add to the file's clock before and after each time that it is set back, the first is 0.
    """

    times: np.ndarray
    tick: Fraction | None
    rate: Fraction | None
    by_time: bool
    jumps: tuple[Fraction, ...] = (Fraction(0),)

    def __len__(self) -> int:
        return len(self.times)

    @property
    def start(self) -> Fraction:
        """When the first frame is shown, in seconds of the file's clock."""
        return Fraction(0) if self.tick is None or not len(self) else int(self.times[0]) * self.tick

    def first_from(self, seconds: float) -> int:
        """The number of the first frame that is shown ``seconds`` after the first one or later, to a millisecond.

        Raises:
            ValueError: the file does not say when its frames are shown.
        """
        if self.tick is None:
            raise ValueError("it states neither times nor a frame rate")
        ticks = (Fraction(seconds) - self._rounding()) / self.tick
        return int(np.searchsorted(self.times - self.times[:1], float(ticks)))

    def place(self, number: int) -> str:
        """Format when a frame is shown, counted from the first, as " (1.80 s)"; empty where nobody knows."""
        if self.tick is None or number >= len(self):
            return ""
        return f" ({float(int(self.times[number] - self.times[0]) * self.tick):.2f} s)"

    def number_of(self, time: int | None) -> int | None:
        """The number of the frame that has this timestamp, None where none has."""
        if not self.by_time or time is None:
            return None
        number = int(np.searchsorted(self.times, time))
        return number if number < len(self) and self.times[number] == time else None

    def starting_at(self, number: int) -> Timeline:
        """Drop the frames before ``number``, which cannot be decoded."""
        return replace(self, times=self.times[number:])

    def _rounding(self) -> Fraction:
        return ROUNDING if self.rate is None else min(ROUNDING, 1 / (2 * self.rate))


class Clock:
    """Timestamps of a stream's packets on a clock that is never set back.

    Args:
        jumps: as in `Timeline`, so that the sound of a file keeps its place beside the pictures; more are made up
            where the clock is set back more often.
    """

    def __init__(self, jumps: Iterable[Fraction] = (Fraction(0),)) -> None:
        self.jumps = list(jumps)
        self._set_back = 0
        # When the last packet was to be decoded and when it ended, in ticks.
        self._before: tuple[int, int] | None = None

    def time(self, packet: Packet[Any]) -> int | None:
        """Return when the packet is shown, in its ticks; None when it does not say."""
        at, tick = packet.dts, packet.time_base
        if at is None or tick is None:
            return packet.pts
        if self._before is not None and self._is_another_clock(packet, (at - self._before[0]) * tick):
            self._set_back += 1
            if self._set_back == len(self.jumps):
                self.jumps.append((self._before[1] - at) * tick + self.jumps[-1])
            self._before = None
        step = 0 if self._before is None else max(0, at - self._before[0])
        self._before = at, at + (packet.duration or step)
        return None if packet.pts is None else packet.pts + round(self.jumps[self._set_back] / tick)

    def _is_another_clock(self, packet: Packet[Any], step: Fraction) -> bool:
        """Whether a packet ``step`` seconds after the last one, by when they are decoded, is of another file's clock.

        FFmpeg makes up decoding times of Matroska files, with mistakes: a packet shown later than the last one was
        decoded is of the same clock.
        """
        assert self._before is not None and packet.time_base is not None
        if packet.pts is not None and step < 0:
            step = max(step, (packet.pts - self._before[0]) * packet.time_base)
        return not -SET_BACK < step < LONGEST_PAUSE


def timeline(container: InputContainer, stream: VideoStream) -> Timeline:
    """Read when the frames of ``stream`` are shown. Leaves ``container`` anywhere.

    Raises:
        av.FFmpegError: never for damage: what comes after it is not counted.
    """
    return _from_header(container, stream) or _from_packets(container, stream)


def is_shown(packet: Packet[VideoStream]) -> bool:
    """Whether a frame comes of it: an empty packet repeats the frame before, others are outside the part to show."""
    if not packet.size or packet.is_discard:
        return False
    codec = packet.stream.codec_context
    if codec is None or codec.name not in _HIDDEN:
        return True
    data = memoryview(packet)
    return not _HIDDEN[codec.name](data[0], data[-1])


def _vp8_hides(first: int, last: int) -> bool:
    """RFC 6386, 9.1: bit 4 of the frame tag is show_frame."""
    return not first & 0x10


def _vp9_hides(first: int, last: int) -> bool:
    """VP9 bitstream, 7.2: show_frame of a packet that holds one frame; several in one end with a marker."""
    one_frame, profile_3, shows_existing = last & 0xE0 != 0xC0, first & 0x30 == 0x30, first & 0x08
    return one_frame and not profile_3 and not shows_existing and not first & 0x02


_HIDDEN = {"vp8": _vp8_hides, "libvpx": _vp8_hides, "vp9": _vp9_hides, "libvpx-vp9": _vp9_hides}


def _from_header(container: InputContainer, stream: VideoStream) -> Timeline | None:
    """Read an MP4 whose table of samples has them evenly spaced; None for all else."""
    entries, tick = stream.index_entries, stream.time_base
    if (
        tick is None
        or "mov" not in container.format.name
        or stream.start_time is None
        or not 1 < stream.frames == len(entries)
    ):
        return None
    stored = np.fromiter((-1 if entry.is_discard else entry.timestamp for entry in entries), np.int64, len(entries))
    gaps = np.diff(stored)
    if gaps[0] <= 0 or (gaps != gaps[0]).any():
        return None
    times = stream.start_time + gaps[0] * np.arange(len(stored))
    rate = frame_rate(times, tick, int(gaps[0]), len(times), _stated(stream))
    return Timeline(times, tick, rate, by_time=True)


def _from_packets(container: InputContainer, stream: VideoStream) -> Timeline:
    clock, times, durations, by_time = Clock(), [], [], True
    untimed = container.format.name in UNTIMED_FORMATS
    try:
        for packet in container.demux(stream):
            if not is_shown(packet):
                continue
            by_time &= not untimed or packet.pts == packet.dts
            times.append(packet.dts if untimed else clock.time(packet))
            durations.append(packet.duration or 0)
    except av.FFmpegError:
        pass  # reading frames will come to it, too, and say so
    return _assemble(stream, times, durations, clock, by_time)


def _assemble(
    stream: VideoStream, times: list[int | None], durations: list[int], clock: Clock, by_time: bool
) -> Timeline:
    tick, stated = stream.time_base, _stated(stream)
    known = np.array([time for time in times if time is not None], np.int64)
    order = np.argsort(known, kind="stable")
    known = known[order]
    jumps = tuple(clock.jumps)
    if tick is None or len(known) < min(2, len(times)) or not len(known):
        total = sum(durations) * tick if tick is not None and all(durations) else Fraction(0)
        rate = len(times) / total if total else next(iter(stated), None)
        return Timeline(np.arange(len(times)), None if rate is None else 1 / rate, rate, False, jumps)
    if len(known) == len(times):
        # With B-frames MP4 states the time to the next packet, so it may be the track's end that says it.
        ends = (durations[order[-1]], _stated_end(stream) - int(known[-1]))
        last = min((end for end in ends if end > 0), default=0)
        rate = frame_rate(known, tick, last, len(times), stated)
        return Timeline(known, tick, rate, by_time and len(jumps) == 1 and bool((np.diff(known) > 0).all()), jumps)
    rate = frame_rate(known, tick, durations[-1], len(times), stated)
    return _filled(known, len(times), tick, rate, jumps)


def _filled(
    known: np.ndarray, count: int, tick: Fraction, rate: Fraction | None, jumps: tuple[Fraction, ...]
) -> Timeline:
    """Some packets have no timestamp: frames evenly spaced, of which the last is shown when the file says."""
    if rate is None:
        return Timeline(np.arange(count), None, None, False, jumps)
    last = round(int(known[-1]) * tick * rate)
    return Timeline(np.arange(last - count + 1, last + 1), 1 / rate, rate, False, jumps)


def frame_rate(times: np.ndarray, tick: Fraction, last: int, count: int, stated: list[Fraction]) -> Fraction | None:
    """Frames per second.

    A nominal rate is taken where every frame is where it should be, to what timestamps are rounded to, or to a quarter
    of a frame. All else, variable rates above all, has ``count`` frames over the time from the first to the last's end.

    Args:
        times: int64 (n,), ascending, in ticks: of all frames, or of those that have one.
        tick: seconds.
        last: how long the last frame is shown, in ticks; 0 or less where the file does not say.
        count: frames in all.
        stated: nominal rates, as the file states them or FFmpeg guesses them.
    """
    if count == 1:
        shown = max(0, last) * tick
        close = (rate for rate in stated if not shown or abs(1 / rate - shown) <= max(tick, ROUNDING))
        return next(close, 1 / shown if shown else None)
    span = int(times[-1] - times[0])
    if not span:
        return next(iter(stated), None)
    guesses = [*stated, *_even(times, tick), *_near((len(times) - 1) / (span * tick))]
    guesses = stated[:1] + [rate for rate in guesses if last <= 0 or abs(1 / rate - last * tick) < SHORT_LAST]
    guesses.sort(key=lambda rate: rate.denominator not in (1, 1001))
    misfits = [_misfit(times, tick, rate, count) for rate in guesses]
    for allowed in (tick, max(tick, ROUNDING)):
        for rate, misfit in zip(guesses, misfits, strict=True):
            if misfit <= float(allowed) * 1.001:
                return rate
    for rate, misfit in zip(guesses, misfits, strict=True):
        if rate in stated and misfit <= 1 / (2 * rate):
            return rate
    mean = Fraction(span, len(times) - 1)
    return count / ((span + (last if last > 0 else mean)) * tick)


def _misfit(times: np.ndarray, tick: Fraction, rate: Fraction, count: int) -> float:
    """Seconds between the frame that is earliest and the one that is latest by a rate; infinite where it cannot be."""
    periods = (times - times[0]) * float(tick * rate)
    places = np.rint(periods)
    if (np.diff(places) < 1).any() or places[-1] >= count or (len(times) == count and places[-1] != count - 1):
        return float("inf")
    late = periods - places
    return float(late.max() - late.min()) / float(rate)


def _even(times: np.ndarray, tick: Fraction) -> list[Fraction]:
    """The rate of timestamps that are exactly as far apart as the first two."""
    gap = int(times[1] - times[0])
    return [1 / (gap * tick)] if gap and (np.diff(times) == gap).all() else []


def _near(measured: Fraction) -> list[Fraction]:
    """Usual rates close to a measured one, the closest first: of timestamps rounded by a container that states none."""
    whole = [Fraction(max(1, round(measured)))]
    whole += [Fraction(1000 * round(measured * Fraction(1001, 1000)), 1001)] if measured >= 1 else []
    return sorted(whole, key=lambda rate: abs(rate - measured))


def _stated(stream: VideoStream) -> list[Fraction]:
    return [rate for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate) if rate]


def _stated_end(stream: VideoStream) -> int:
    """Return when the track ends by its header, in ticks; 0 where it does not say."""
    return 0 if stream.duration is None else (stream.start_time or 0) + stream.duration
