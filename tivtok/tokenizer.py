"""The tokenizer: encode a video to TIV and TV tokens, decode any of its frames from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from tivtok.budgets import EVERYTHING, Budget, check_number, fit
from tivtok.checkpoints import CheckpointError, find_checkpoint, load_checkpoint, save_checkpoint
from tivtok.chunks.cuts import end_at_cuts
from tivtok.chunks.sharing import Sharing, TivSets, mean_tiv
from tivtok.identity import new_model_id, unstored_model_id
from tivtok.model.blocks import init_local, init_weights
from tivtok.model.config import TivTokConfig
from tivtok.model.decoder import DECODERS, Prepared
from tivtok.model.encoder import Encoder
from tivtok.model.patchify import pad_to_patches, patch_grid, unpatchify
from tivtok.model.quantizer import FSQ, SoftVQ
from tivtok.refinement import check_refinable
from tivtok.refinement import refine as improve
from tivtok.tokens import Counts, TokenCollector, Tokens, TokensError
from tivtok.video.frames import to_float

# Videos are in [-1, 1], plus a little that resizing adds. Values beyond this have another scale (0..255, say).
LARGEST_VALUE = 2.0

VIDEO_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8)

Result = TypeVar("Result", covariant=True)


class Sink(Protocol[Result]):
    """Target of `TivTok.encode_into`: `TokenCollector` or `TokenWriter`."""

    def add(self, tiv: Tensor, tv: Tensor) -> None: ...

    def close(self, set_of_chunk: Tensor, fields: dict[str, Any]) -> Result: ...


class TivTok(nn.Module):
    """TivTok (arXiv 2606.17590): scope-induced factorization in the encoder, invariant broadcasting in the decoder.

    Video is (B, 3, F, H, W) in [-1, 1], any F >= 1 and any H, W. Every 4 video frames form a frame group, every
    ``config.groups_per_chunk`` groups a chunk. Chunks are encoded apart and share TIV sets by averaging (Eq. 6).
    """

    def __init__(self, config: TivTokConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quantizer = _quantizer(config)
        self.decoder = DECODERS[config.decoder](config)
        self.apply(init_weights)
        if config.initialization == "local":
            self.apply(init_local)
        self._identity: tuple[tuple[int, ...], str] | None = None  # model id, and the weights' versions it is for

    @classmethod
    def from_pretrained(cls, path_or_name: str | Path, revision: str | None = None) -> TivTok:
        """Load what `save_pretrained` made (a folder or file), a bundled checkpoint, or a Hugging Face repository.

        Raises:
            CheckpointError: there is none, or it is not one of this model.
        """
        folder = find_checkpoint(path_or_name, revision)
        checkpoint = load_checkpoint(folder)
        model = cls(checkpoint.config)
        try:
            model.load_state_dict(checkpoint.weights)
        except RuntimeError as error:
            raise CheckpointError(f"the weights in {folder} do not fit its config: {error}") from None
        model_id = checkpoint.model_id or unstored_model_id(model.config, model.state_dict())
        model._identity = model._versions(), model_id
        return model.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``; the latter keeps the model id."""
        save_checkpoint(folder, self.config, self.state_dict(), self.model_id)

    @property
    def model_id(self) -> str:
        """Short id of these weights: tokens can only be decoded by the model that made them.

        It comes with a checkpoint and stays while the weights do, in any dtype and on any device; weights that have
        changed since get a new one.
        """
        versions = self._versions()
        if self._identity is None or self._identity[0] != versions:
            self._identity = versions, new_model_id(self.config, self.state_dict())
        return self._identity[1]

    def _versions(self) -> tuple[int, ...]:
        """Counts of in-place changes of each weight."""
        return tuple(0 if x.is_inference() else x._version for x in self.state_dict().values())

    def forward(
        self,
        video: Tensor,
        siblings: bool = False,
        without_tv: Tensor | None = None,
        budget: tuple[int, int] | None = None,
        noise: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Reconstruct (B, 3, F, H, W) differentiably: what training minimises the error of.

        Args:
            siblings: False: through one TIV set, the mean of the chunks' (Eq. 6). True: each chunk through the TIV set
                of the one before it, the first through that of the last, so that it can hold nothing of its own.
            without_tv: bool (B,): clips that are decoded with the TV tokens of a grey video, so that their TIV tokens
                must show by themselves what stays.
            budget: how many TIV tokens of a set and TV tokens of a group are decoded, the first.
            noise: what is added to the TIV sets that are decoded, (B, at least as many sets, N_TIV, D), and to the TV
                tokens, (B, T, N_TV, D).
        """
        tiv, tv = self.encode_chunks(video)
        if noise is not None:
            tv = tv + noise[1]
        if without_tv is not None:
            tv = torch.where(without_tv[:, None, None, None], self.encode_grey(*video.shape[3:])[1], tv)
        if siblings:
            whole, last = divmod(tv.shape[1], self.config.groups_per_chunk)
            groups_of_set = [self.config.groups_per_chunk] * whole + [last] * (last > 0)
            tiv = tiv.roll(1, dims=1)
        else:
            groups_of_set = [tv.shape[1]]
            tiv = mean_tiv(tiv.unbind(dim=1))[:, None]
            tiv = self.quantizer.snap(tiv) if isinstance(self.quantizer, FSQ) else tiv
        if noise is not None:
            tiv = tiv + noise[0][:, : tiv.shape[1]]
        if budget is not None:
            tiv, tv = tiv[:, :, : budget[0]], tv[:, :, : budget[1]]
        return self.decode_groups(self.prepare(tiv), tv, groups_of_set, *video.shape[3:])[:, :, : video.shape[2]]

    def encode(
        self,
        video: Tensor,
        tiv_sets: TivSets = 1,
        fps: float | None = None,
        refine: int = 0,
        num_tiv: int | None = None,
        num_tv: int | None = None,
        psnr: float | None = None,
    ) -> Tokens:
        """Tokenise a video (paper Sec. 3.5, Alg. 1).

        Args:
            video: (B, 3, F, H, W), floating point in [-1, 1], or uint8 where 0..255 stands for [-1, 1]; taken to the
                dtype of the weights.
            tiv_sets: how many TIV sets the chunks share: 1 is full reuse, one per chunk is none, "auto" ends chunks at
                cuts and starts a new set where the content has changed too much (for a whole batch at once).
            fps: kept with the tokens, in frames per second.
            refine: how many steps to improve the tokens by, through the decoder (`tivtok.refinement.refine`).
            num_tiv: of a model with nested tokens, how many to keep of each TIV set; all by default.
            num_tv: how many TV tokens to keep of each frame group, likewise.
            psnr: of a model with nested tokens: in dB, to keep as few tokens of each TIV set and of each frame group as
                give every frame group so much (`tivtok.budgets.fit`), of several videos each; costs many decodings.

        Returns:
            tokens in the dtype of the weights; refined ones in float32, or float64 if the weights are. They can be
            stored in any of `Tokens.save`'s, and `decode` takes tokens of any floating dtype to that of the weights.

        Raises:
            TypeError: ``video`` is no tensor, or of another dtype, or ``tiv_sets`` is no whole number.
            ValueError: ``video`` has another shape or is on another device than the weights, has values that are not
                finite or beyond +-`LARGEST_VALUE`, there are fewer chunks than ``tiv_sets``, or the model's tokens
                cannot be refined or chosen so.
        """
        _check_video(video)
        _check_values(video, self._like.device)
        budget = Budget(num_tiv, num_tv, psnr)
        budget.check(self.config, refine)
        if refine:
            check_refinable(self.config, refine)
        chunks = video.split(self.config.chunk_frames, dim=2)
        tokens = self.encode_into(TokenCollector(), chunks, tiv_sets, fps, at_once=None, budget=budget)
        if psnr is not None:
            tokens = fit(self, tokens, video, psnr).tokens
        return improve(self, tokens, video, refine) if refine else tokens

    def cut(self, tokens: Tokens, num_tiv: int | None = None, num_tv: int | None = None) -> Tokens:
        """The first ``num_tiv`` tokens of each TIV set and ``num_tv`` of each frame group, all by default.

        Raises:
            TokensError: another model made the tokens.
            ValueError: the model's tokens are not nested, or there are no such numbers of them.
        """
        self.check_ours(tokens)
        for name, wanted, there in (("num_tiv", num_tiv, tokens.tiv.shape[2]), ("num_tv", num_tv, tokens.tv.shape[2])):
            if wanted is not None:
                check_number(name, wanted, there, self.config)
        tiv, tv, counts = tokens.tiv[:, :, :num_tiv], tokens.tv[:, :, :num_tv], tokens.counts
        if counts is not None:
            most = (tiv.shape[2], tv.shape[2])
            counts = Counts(*(tuple(min(n, m) for n in numbers) for numbers, m in zip(counts, most, strict=True)))
        return replace(tokens, tiv=tiv, tv=tv, counts=counts)

    def encode_into(
        self,
        sink: Sink[Result],
        chunks: Iterable[Tensor],
        tiv_sets: TivSets = 1,
        fps: float | None = None,
        at_once: int | None = 1,
        budget: Budget = EVERYTHING,
    ) -> Result:
        """Tokenise a video that comes in chunks (paper Sec. 3.5, Alg. 1).

        Args:
            sink: takes the tokens of each chunk, and in the end which chunks share a TIV set.
            chunks: (B, 3, f, H, W) as in `encode`, each of ``config.chunk_frames`` frames, the last may be shorter;
                their values are not checked.
            tiv_sets: as in `encode`.
            fps: as in `encode`.
            at_once: how many chunks go through the encoder together, to bound memory; None for all of them.
            budget: its numbers of tokens are kept; what it says of quality is not heeded here.

        Returns:
            what ``sink.close`` returns.

        Raises:
            ValueError: there are fewer chunks than ``tiv_sets``.
        """
        encoding = Encoding(self, sink, tiv_sets, fps, budget)
        for batch in _batched(encoding.cut(chunks), at_once):
            for chunk, (tiv, tv) in zip(batch, self.encode_batch(batch), strict=True):
                encoding.add(chunk, tiv, tv)
        return encoding.close()

    def encode_chunks(self, video: Tensor, lengths: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """video (B, 3, F, H, W) -> the TIV tokens of each chunk (B, K, N_TIV, D), all TV tokens (B, T, N_TV, D).

        Takes the dtypes that `encode` takes. Values are not checked, so that training need not wait for the device.

        Args:
            lengths: the frames of each chunk, whole groups but for the last; ``config.chunk_frames`` by default.

        Raises:
            TypeError, ValueError: ``video`` has another dtype or shape.
        """
        _check_video(video)
        chunks = video.split(self.config.chunk_frames if lengths is None else list(lengths), dim=2)
        tivs, tvs = zip(*self.encode_batch(chunks), strict=True)
        return torch.stack(tivs, dim=1), torch.cat(tvs, dim=1)

    def encode_grey(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """TIV (1, 1, N_TIV, D) and TV tokens (1, 1, N_TV, D) of a video in which nothing is and nothing changes.

        They stand in for the tokens of a kind that is left out: the tokens of a grey chunk, TV tokens as the mean of
        its frame groups. Zeros would not do: the decoder was never trained on them and returns noise.
        """
        tiv, tv = self.encode_chunks(self._like.new_zeros(1, 3, self.config.chunk_frames, height, width))
        return tiv, tv.mean(dim=1, keepdim=True)

    def encode_batch(self, chunks: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """TIV (B, N_TIV, D) and TV tokens (B, T, N_TV, D) of each chunk, whichever video it is of.

        Args:
            chunks: (B, 3, f, H, W) as in `encode`, but not checked; those of one shape go through together.
        """
        padded = [pad_to_patches(to_float(chunk, self._like.dtype), self.config.patch) for chunk in chunks]
        encoded: dict[int, tuple[Tensor, Tensor]] = {}
        for shape in {chunk.shape for chunk in padded}:
            same = [k for k, chunk in enumerate(padded) if chunk.shape == shape]
            tiv, tv = self.encoder(torch.cat([padded[k] for k in same]))
            tivs, tvs = (self.quantizer(x).chunk(len(same)) for x in (tiv, tv))
            encoded |= zip(same, zip(tivs, tvs, strict=True), strict=True)
        return [encoded[k] for k in range(len(padded))]

    def decode(self, tokens: Tokens, frames: slice | Sequence[int] | None = None) -> Tensor:
        """Decode ``tokens`` to (B, 3, F, H, W), or only ``frames`` of it: no other frame groups are computed then.

        Args:
            frames: a slice of the video's frames, or their numbers in any order, as they would index
                ``decode(tokens)[:, :, frames]``.

        Raises:
            TokensError: another model made the tokens.
            IndexError: a frame is not there.
            TypeError: ``frames`` is neither a slice nor a sequence.
        """
        self.check_ours(tokens)
        per_group = self.config.frames_per_group
        frames = slice(None) if frames is None else frames
        if isinstance(frames, str) or not isinstance(frames, (slice, Iterable)):
            raise TypeError(f"frames must be a slice, or numbers of frames in a sequence, got {frames!r}")
        wanted = torch.arange(tokens.num_frames)[frames if isinstance(frames, slice) else list(frames)]
        if not len(wanted):
            return tokens.tv.new_empty(tokens.tv.shape[0], 3, 0, tokens.height, tokens.width)
        groups, where = (wanted // per_group).unique(return_inverse=True)
        budgets, budget_of_group = tokens.counts_of(groups).unique(dim=0, return_inverse=True)
        by_set = tokens.sets_of(groups).argsort(stable=True)
        alike = [by_set[budget_of_group[by_set] == number] for number in range(len(budgets))]
        parts = [self._decode_alike(tokens, groups[at], *budgets[n].tolist()) for n, at in enumerate(alike)]
        video = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)  # which would copy it
        place_of_group = torch.cat(alike).argsort()
        return video[:, :, (place_of_group[where] * per_group + wanted % per_group).to(video.device)]

    def _decode_alike(self, tokens: Tokens, groups: Tensor, num_tiv: int, num_tv: int) -> Tensor:
        """The frames of ``groups`` (n,), in the order of their sets and with as many tokens each.

        Returns:
            (B, 3, n * frames per group, H, W).
        """
        sets, groups_of_set = tokens.sets_of(groups).unique(return_counts=True)
        prepared = self.prepare(tokens.tiv[:, sets.to(tokens.tiv.device)][:, :, :num_tiv])
        tv = tokens.tv[:, groups.to(tokens.tv.device)][:, :, :num_tv]
        return self.decode_groups(prepared, tv, groups_of_set.tolist(), tokens.height, tokens.width)

    def prepare(self, tiv: Tensor) -> Prepared:
        """Compute what `decode_groups` needs of the TIV sets (B, S, N_TIV, D), once for any number of calls."""
        return self.decoder.prepare(tiv.to(self._like).flatten(0, 1))

    def decode_groups(
        self, prepared: Prepared, tv: Tensor, groups_of_set: list[int], height: int, width: int
    ) -> Tensor:
        """Decode all frames of the groups in ``tv`` (B, T, N_TV, D), which come in the order of their TIV sets.

        Args:
            prepared: of all S sets, by `prepare`.
            groups_of_set: how many of the T groups use each of them.

        Returns:
            (B, 3, T * frames per group, height, width).
        """
        grid = patch_grid(tv.shape[1] * self.config.frames_per_group, height, width, self.config.patch)
        patches = self.decoder.groups(prepared, tv.to(self._like), groups_of_set, *grid[1:])
        return unpatchify(patches, grid, self.config.patch)[..., :height, :width]

    def check_ours(self, tokens: Tokens) -> None:
        """Raises TokensError: another model made the tokens, or this one cannot have made them."""
        if tokens.model_id != self.model_id:
            raise TokensError(
                f"the tokens were made by model {tokens.model_id} ({tokens.preset}), "
                f"this is model {self.model_id} ({self.config.name})"
            )
        config = self.config
        ours = (config.num_tiv, config.num_tv, config.latent_dim, config.num_groups(tokens.num_frames))
        theirs = (tokens.tiv.shape[2], tokens.tv.shape[2], tokens.tiv.shape[3], tokens.tv.shape[1])
        if tokens.counts is not None and not config.nested:
            raise TokensError(f"the tokens have numbers of their own, and model {config.name} needs all of them")
        if config.nested and 0 not in theirs:
            ours = (min(ours[0], theirs[0]), min(ours[1], theirs[1]), *ours[2:])
        if theirs != ours:
            raise TokensError(
                f"N_TIV, N_TV, D and frame groups of a video of {tokens.num_frames} frames must be {ours}, got {theirs}"
            )

    @property
    def _like(self) -> Tensor:
        """A weight, for its device and dtype."""
        return self.decoder.patch_query


def _quantizer(config: TivTokConfig) -> nn.Module:
    if config.quantizer == "softvq":
        return SoftVQ(config.codebook_size, config.latent_dim, config.softvq_temperature)
    return nn.Identity() if config.levels is None else FSQ(config.levels)


class Encoding(Generic[Result]):
    """Algorithm 1 (paper Sec. 3.5) for one video, whose chunks come one after another.

    Args:
        model: what encodes the chunks.
        sink: takes the tokens of each chunk, and in the end which chunks share a TIV set.
        tiv_sets, fps: as in `TivTok.encode`.
        budget: as in `TivTok.encode_into`.
    """

    def __init__(
        self,
        model: TivTok,
        sink: Sink[Result],
        tiv_sets: TivSets = 1,
        fps: float | None = None,
        budget: Budget = EVERYTHING,
    ) -> None:
        self._model, self._sink, self._tiv_sets, self._fps, self._budget = model, sink, tiv_sets, fps, budget
        self._sharing = Sharing(tiv_sets)
        self._lengths: list[int] = []
        self._size: tuple[int, ...] = (0, 0)

    def cut(self, chunks: Iterable[Tensor]) -> Iterable[Tensor]:
        """The chunks to encode of those that come, (B, 3, f, H, W): the same, or ones that end at cuts."""
        config = self._model.config
        return end_at_cuts(chunks, config.chunk_frames, config.frames_per_group) if self._tiv_sets == "auto" else chunks

    def add(self, chunk: Tensor, tiv: Tensor, tv: Tensor) -> None:
        """Take the next chunk (B, 3, f, H, W) and its tokens (B, N_TIV, D) and (B, T, N_TV, D)."""
        self._sharing.add(tiv, tv.shape[1] / self._model.config.groups_per_chunk)
        self._sink.add(tiv[:, : self._budget.num_tiv], tv[:, :, : self._budget.num_tv])
        self._lengths.append(chunk.shape[2])
        self._size = chunk.shape[3:]

    def close(self) -> Result:
        """
        Raises:
            ValueError: there are fewer chunks than ``tiv_sets``.
        """
        config = self._model.config
        even = all(length == config.chunk_frames for length in self._lengths[:-1])
        height, width = self._size
        fields = {
            "num_frames": sum(self._lengths),
            "height": height,
            "width": width,
            "fps": self._fps,
            "preset": config.name,
            "model_id": self._model.model_id,
            "chunk_frames": None if even else tuple(self._lengths),
            "levels": config.levels,
        }
        return self._sink.close(self._sharing.set_of_chunk(), fields)


def _batched(chunks: Iterable[Tensor], at_once: int | None) -> Iterator[list[Tensor]]:
    chunks = iter(chunks)
    while batch := list(islice(chunks, at_once)):
        yield batch


def _check_video(video: Tensor) -> None:
    if not isinstance(video, Tensor):
        raise TypeError(f"video must be a tensor, got {type(video).__name__}")
    if video.dtype not in VIDEO_DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in VIDEO_DTYPES)
        raise TypeError(f"video must be of one of the dtypes {names} (0..255), got {video.dtype}")
    if video.ndim != 5 or video.shape[1] != 3 or 0 in video.shape:
        raise ValueError(f"video must be (B, 3, F, H, W) with no empty dimension, got {tuple(video.shape)}")


def _check_values(video: Tensor, device: torch.device) -> None:
    """One pass over the video and one wait for the device."""
    if video.device != device:
        raise ValueError(f"video must be on {device} like the model, got one on {video.device}")
    if video.dtype == torch.uint8:
        return
    low, high = torch.stack(video.detach().aminmax()).tolist()  # NaN where there is one
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"video must be finite and in [-1, 1], got values from {low:g} to {high:g}")
    if max(-low, high) > LARGEST_VALUE:
        raise ValueError(
            f"video must be in [-1, 1] (0..255 as uint8), got {video.dtype} values from {low:g} to {high:g}"
        )
