"""Clips depend on the seed and their number alone, whoever reads them."""

from __future__ import annotations

import logging
import weakref
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from tivtok.training import TrainConfig
from tivtok.training.camera import film
from tivtok.training.data import MAX_UNREADABLE, Mixture, TrainingClips, VideosInMemory, VideosOnDisk, training_batches
from tivtok.training.split import split_sources
from tivtok.video import VideoError, VideoReader
from tivtok.video.decoding import Decoded
from tivtok.video.sources import VideoRef, find_sources


@pytest.fixture
def on_disk(config: TrainConfig) -> TrainingClips:
    return TrainingClips(VideosOnDisk(split_sources(config)[0], config.model.native_size), config)


def test_memory_and_disk_give_the_same_clips(config: TrainConfig, on_disk: TrainingClips) -> None:
    in_memory = TrainingClips(VideosInMemory(on_disk.videos.refs, config.short_sides, config.model.native_size), config)
    for number in (0, 7, 3):
        assert torch.equal(on_disk[number], in_memory[number])


def test_in_memory_full_size_frames_come_one_at_a_time(
    config: TrainConfig, on_disk: TrainingClips, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, seen, alive = VideoReader._picture, [], []

    def counted(self: VideoReader, number: int, decoded: Decoded) -> np.ndarray:
        frame = picture(self, number, decoded)
        seen.append(weakref.ref(frame))
        alive.append(sum(one() is not None for one in seen))
        return frame

    monkeypatch.setattr(VideoReader, "_picture", counted)
    videos = VideosInMemory(on_disk.videos.refs, (16, 12), (12, 12))
    assert len(alive) == sum(len(levels[16]) for levels in videos.levels) > 20 and max(alive) <= 2


def test_clips_are_a_function_of_seed_and_number(config: TrainConfig, on_disk: TrainingClips) -> None:
    clip = on_disk[5]
    assert clip.shape == (3, 8, 16, 16) and clip.abs().max() <= 1
    assert torch.equal(clip, on_disk[5]) and not torch.equal(clip, on_disk[6])
    assert not torch.equal(clip, TrainingClips(on_disk.videos, replace(config, seed=1))[5])


@pytest.mark.parametrize("workers", [0, 2])
def test_any_number_of_processes_and_workers_sees_the_same_batches(config: TrainConfig, workers: int) -> None:
    config = replace(config, steps=3, batch_size=4, in_memory=False)
    refs = split_sources(config)[0]
    whole = list(training_batches(refs, config, 0, rank=0, num_processes=1))
    assert len(whole) == 3 and whole[0].shape[0] == 4
    config = replace(config, workers=workers)
    shares = [list(training_batches(refs, config, 1, rank, num_processes=2)) for rank in range(2)]
    assert [len(share) for share in shares] == [2, 2]
    for step, batches in enumerate(zip(*shares, strict=True), 1):
        assert torch.equal(torch.cat(batches), whole[step])
    message = "batch_size must be a multiple of the 3 processes times accumulate = 1, got 4"
    with pytest.raises(ValueError, match=message):
        training_batches(refs, config, 0, rank=0, num_processes=3)


def test_the_clips_of_a_step_are_short_together(config: TrainConfig) -> None:
    model = config.model.replace(groups_per_chunk=3)
    config = replace(config, model=model, steps=60, batch_size=2, short_clips=0.5)
    refs = split_sources(config)[0]
    whole, short = (list(training_batches(refs, c, 0, 0, 1)) for c in (replace(config, short_clips=0.0), config))
    groups = [batch.shape[2] / config.model.frames_per_group for batch in short]
    assert 20 < groups.count(3) < 40 and groups.count(1) > 5 and groups.count(2) > 5 and set(groups) == {1, 2, 3}
    assert {batch.shape[2] for batch in whole} == {config.clip_frames}
    assert all(torch.equal(a, b[:, :, : a.shape[2]]) for a, b in zip(short, whole, strict=True))
    with pytest.raises(ValueError, match="short_clips must be between 0 and 1, got 2"):
        replace(config, short_clips=2)


def test_the_clips_of_a_step_have_as_many_chunks(config: TrainConfig) -> None:
    config = replace(config, steps=60, batch_size=4, chunks=(1, 2, 4), model=config.model.replace(groups_per_chunk=1))
    refs = split_sources(config)[0]
    batches = list(training_batches(refs, config, 0, 0, 1))
    assert {(len(batch), batch.shape[2]) for batch in batches} == {(4, 4), (2, 8), (1, 16)}
    counts = [[len(batch) for batch in batches].count(size) for size in (4, 2, 1)]
    assert min(counts) > 10
    later = list(training_batches(refs, config, 50, 0, 1))  # a function of the step, wherever one begins
    assert all(torch.equal(a, b) for a, b in zip(batches[50:], later, strict=True))
    for step in (0, 1, 2):
        assert not torch.equal(batches[step][0, :, :4], batches[step + 1][0, :, :4])
    with pytest.raises(ValueError, match=r"the 1 processes times accumulate = 2, got 4, 1 of 4 chunks"):
        training_batches(refs, replace(config, accumulate=2), 0, 0, 1)
    shared = replace(config, chunks=(1, 2))
    whole, *shares = (list(training_batches(refs, shared, 0, r, n)) for r, n in ((0, 1), (0, 2), (1, 2)))
    assert all(torch.equal(torch.cat(parts), batch) for batch, *parts in zip(whole, *shares, strict=True))
    for chunks in (0, (), (1, 0)):
        with pytest.raises(ValueError, match="chunks must be at least 1, got"):
            replace(config, chunks=chunks)


def test_every_epoch_has_every_video_once_in_another_order(config: TrainConfig) -> None:
    seen: list[int] = []

    class Recorder:
        def __len__(self) -> int:
            return 10

        def clip(self, video: int, short_side: int, count: int, stride: int, position: float) -> torch.Tensor:
            seen.append(video)
            return torch.zeros(count, 20, 20, 3, dtype=torch.uint8)

    clips = TrainingClips(Recorder(), replace(config, augmentation="flip"))
    for number in range(20):
        clips[number]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10)) and seen[:10] != seen[10:]


def test_data_sets_have_their_shares(config: TrainConfig) -> None:
    refs = [VideoRef(f"{n}", Path(f"{n}"), columns={"dataset": "b" if n == 4 else "a"}) for n in range(6)]
    mixture = Mixture(refs, (("a", 1.0), ("b", 3.0)))
    drawn = list(islice(mixture.draw(np.random.default_rng(0)), 2000))
    counts = [drawn.count(n) for n in range(6)]
    assert 1400 < counts[4] < 1600 and all(60 < count < 140 for n, count in enumerate(counts) if n != 4)
    for shares in ((("a", 1.0),), (("a", 1.0), ("b", 1.0), ("c", 1.0))):
        with pytest.raises(ValueError, match="a share for each data set, 'a', 'b' by the lists' column dataset"):
            Mixture(refs, shares)
    with pytest.raises(ValueError, match="mix must have shares of 0 or more"):
        replace(config, mix=(("a", -1.0),))


def test_a_mixture_is_a_function_of_seed_and_number(config: TrainConfig) -> None:
    """A list says which data set a video is of; two processes have the batches of one, and a share of 0 is none."""
    rows = "".join(f"{config.data}/{name}.mp4,{name}\n" for name in ("a", "b", "test"))
    (config.output.parent / "list.csv").write_text("path,dataset\n" + rows)
    config = replace(config, data=config.output.parent / "list.csv", mix=(("a", 0.5), ("b", 0.5)), augmentation="flip")
    refs = split_sources(config).training
    whole = list(training_batches(refs, config, 0, 0, 1))
    shares = [list(training_batches(refs, config, 0, rank, 2)) for rank in (0, 1)]
    assert all(torch.equal(torch.cat(parts), batch) for batch, *parts in zip(whole, *shares, strict=True))
    one, other = (
        list(training_batches(refs, replace(config, mix=mix), 0, 0, 1))
        for mix in ((("a", 1.0), ("b", 0.0)), (("a", 0.0), ("b", 1.0)))
    )
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_flip_takes_centre_crops_and_only_mirrors_them(config: TrainConfig, on_disk: TrainingClips) -> None:
    flip = TrainingClips(on_disk.videos, replace(config, augmentation="flip", short_sides=(16,)))
    clips = {flip[number].numpy().tobytes(): flip[number] for number in range(16)}
    mirrored = [clip.flip(-1).numpy().tobytes() in clips for clip in clips.values()]
    assert any(mirrored)
    strong = TrainingClips(on_disk.videos, replace(config, short_sides=(16,)))
    assert len({strong[number].numpy().tobytes() for number in range(16)}) == 16


def test_strong_turns_recolours_and_mixes(config: TrainConfig) -> None:
    """Videos whose red grows to the right, by as many levels a pixel as their number says."""

    class Ramps:
        def __len__(self) -> int:
            return 2

        def clip(self, video: int, short_side: int, count: int, stride: int, position: float) -> torch.Tensor:
            frames = torch.zeros(count, 20, 20, 3, dtype=torch.uint8)
            frames[..., 0] = 60 + (2 + 2 * video) * torch.arange(20, dtype=torch.uint8)
            return frames

    clips = TrainingClips(Ramps(), config)
    slopes, channels, downwards, of_one = set(), set(), set(), 0
    for number in range(64):
        clip = clips[number]
        lit = clip.amax((1, 2, 3)) > clip.amax((1, 2, 3)).min() + 1e-3
        if int(lit.sum()) != 1:
            continue  # two clips whose red went to different channels
        of_one += 1
        (channel,) = clip[lit]
        across, down = (float((channel.roll(-1, axis) - channel)[0, 2, 2]) for axis in (2, 1))
        channels.add(int(lit.nonzero()))
        downwards.add(abs(down) > abs(across))
        slopes.add((across > 1e-4) - (across < -1e-4))
    assert channels == {0, 1, 2} and downwards == {False, True} and slopes == {-1, 0, 1}
    assert of_one < 64


def test_a_collage_is_made_of_five_and_a_half_clips(config: TrainConfig) -> None:
    """Itself, 0 to 8 pieces, and every second time one that shines through."""
    read = 0

    class Counter:
        def __len__(self) -> int:
            return 3

        def clip(self, video: int, short_side: int, count: int, stride: int, position: float) -> torch.Tensor:
            nonlocal read
            read += 1
            return torch.full((count, 20, 20, 3), 80 * video, dtype=torch.uint8)

    clips = TrainingClips(Counter(), replace(config, augmentation="collage"))
    edges = [len(clips[number][:, 0].flatten(1).unique(dim=1).T) > 1 for number in range(200)]
    assert 5 < read / 200 < 6
    assert 0.75 < sum(edges) / 200 < 1  # of one colour are those without pieces, or whose pieces cover nothing
    again = TrainingClips(Counter(), replace(config, augmentation="collage"))
    assert torch.equal(clips[7], again[7])


def test_a_share_of_the_clips_is_filmed_from_the_largest_frames(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, filmed = [], []

    class Ramp:
        def __len__(self) -> int:
            return 3

        def clip(self, video: int, short_side: int, count: int, stride: int, position: float) -> torch.Tensor:
            read.append(short_side)
            ramp = torch.arange(short_side, dtype=torch.uint8)[:, None, None] * 4
            return ramp.expand(count, short_side, short_side, 3)

    def counted(clip: torch.Tensor, size: tuple[int, int], rng: np.random.Generator) -> torch.Tensor:
        filmed.append(clip.shape[2:])
        return film(clip, size, rng)

    monkeypatch.setattr("tivtok.training.data.film", counted)
    changed = replace(config, augmentation="strong", short_sides=(20, 24, 32))
    clips = TrainingClips(Ramp(), replace(changed, camera=0.5))
    assert all(clips[number].shape[2:] == config.model.native_size for number in range(100))
    assert set(filmed) == {(32, 32)} and 0.4 < len(filmed) / len(read) < 0.6
    filmed.clear()
    assert torch.equal(TrainingClips(Ramp(), changed)[5], TrainingClips(Ramp(), replace(changed, camera=0.0))[5])
    assert not filmed


def test_unreadable_videos_are_reported_and_replaced(
    config: TrainConfig, on_disk: TrainingClips, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    missing = VideoRef("missing.mp4", tmp_path / "missing.mp4")
    videos = VideosOnDisk([missing, *find_sources(config.data).videos], config.model.native_size)
    with caplog.at_level(logging.WARNING):
        clips = [TrainingClips(videos, config)[number] for number in range(4)]
    assert len(clips) == 4 and "missing.mp4" in caplog.text
    with pytest.raises(VideoError, match=f"{MAX_UNREADABLE} videos in a row"):
        TrainingClips(VideosOnDisk([missing], config.model.native_size), config)[0]
