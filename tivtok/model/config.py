"""Configuration of a TivTok model: one frozen dataclass, and the paper's presets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from math import prod
from typing import Any, Literal


@dataclass(frozen=True)
class TivTokConfig:
    """Sizes of a TivTok tokenizer (paper Sec. 4.1; token counts deduced from its Tables 1, 2, 4 and 5).

    Attributes:
        name: preset name, written into token files.
        num_tiv: time-invariant tokens of a TIV set, N_TIV.
        num_tv: time-variant tokens of a frame group, N_TV; with 0 of them all groups of a set look the same.
        latent_dim: channels stored per token, D.
        width, heads: of both transformers; the head dimension is width / heads.
        encoder_layers, decoder_layers: pre-norm blocks.
        mlp_ratio: hidden width of the MLPs over ``width``.
        patch: video frames, rows and columns of a patch; its first number is the frames in a frame group.
        groups_per_chunk: frame groups encoded together, T.
        native_size: height and width the weights were trained at; other sizes run, with no promise of quality.
        decoder: "shared": TIV rows attend to TIV rows, so their keys and values are computed once for all frames.
            "per_frame": TIV rows are copied into each frame's sequence and updated there (the literal Eq. 5).
        quantizer: "none", "softvq" (arXiv 2412.10958), or "fsq" (arXiv 2309.15505), whose tokens are integer codes.
        codebook_size, softvq_temperature: of SoftVQ.
        fsq_levels: of FSQ: how many values each channel of a code has; ``latent_dim`` is a multiple of their number.
        qk_norm: RMS-normalise queries and keys per head.
        rope_theta: base of the 3D rotary frequencies.
        nested: tokens are in order of worth: the first of a TIV set and of a frame group serve without the others, as
            training with a share of ``nested`` steps makes them (nested dropout, arXiv 1402.0915). Where they have
            places, the first few of these are spread over the frame, too (`tivtok.model.rope.nested_places`).
        rope_heads: how many heads, the first, are rotated; all by default. VFRTok (arXiv 2505.12053) rotates half.
        latent_positions: "none": latent tokens are not rotated (as in VFRTok, arXiv 2505.12053). "grid": they are
            spread evenly over the frame, so that each can find what is near it, and positions are counted in patches
            of ``native_size`` at any size. "tiv-grid": so are the TIV tokens, and TV tokens are not rotated.
        encoder_time: "rotary": the encoder's rotary positions include time, as the paper's 3D ones do. "none": they do
            not, so TIV tokens do not depend on the order of the frame groups, and TV tokens cannot tell the time.
        patch_positions: "rotary": where a patch is, queries and keys alone say, as in the paper. "learned": so does an
            embedding of each place in the frame, of `native_size`, in encoder and decoder; interpolated at other sizes.
        initialization: "vit": the usual small random weights. "local": random weights that keep the size of what passes
            through them, and queries and keys that begin alike, so that rotary positions alone decide at first who sees
            whom: near rows see each other most. It learns faster where latent tokens have places.
    """

    name: str = "t128-base"
    num_tiv: int = 96
    num_tv: int = 8
    latent_dim: int = 128
    width: int = 768
    heads: int = 12
    encoder_layers: int = 12
    decoder_layers: int = 12
    mlp_ratio: int = 4
    patch: tuple[int, int, int] = (4, 8, 8)
    groups_per_chunk: int = 4
    native_size: tuple[int, int] = (256, 256)
    decoder: Literal["shared", "per_frame"] = "shared"
    quantizer: Literal["none", "softvq", "fsq"] = "none"
    codebook_size: int = 8192
    softvq_temperature: float = 0.07
    qk_norm: bool = False
    rope_theta: float = 10_000.0
    latent_positions: Literal["none", "grid", "tiv-grid"] = "none"
    encoder_time: Literal["rotary", "none"] = "rotary"
    patch_positions: Literal["rotary", "learned"] = "rotary"
    initialization: Literal["vit", "local"] = "vit"
    fsq_levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    rope_heads: int | None = None
    nested: bool = False

    def __post_init__(self) -> None:
        for name in ("latent_dim", "width", "heads", "encoder_layers", "decoder_layers", "groups_per_chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, other in (("num_tiv", "num_tv"), ("num_tv", "num_tiv")):
            if getattr(self, name) < (getattr(self, other) == 0):
                raise ValueError(f"{name} must be at least 0, and 1 where {other} is 0, got {getattr(self, name)}")
        if self.width % self.heads or self.head_dim % 2:
            raise ValueError(
                f"width / heads must be an even whole number (rotary pairs), got {self.width} / {self.heads}"
            )
        if self.rope_heads is not None and not 1 <= self.rope_heads <= self.heads:
            raise ValueError(f"rope_heads must be between 1 and the {self.heads} heads, got {self.rope_heads}")
        for name, values in _CHOICES.items():
            if getattr(self, name) not in values:
                choices = " or ".join(f'"{value}"' for value in values)
                raise ValueError(f"{name} must be {choices}, got {getattr(self, name)!r}")
        if self.levels is not None and (min(self.levels, default=0) < 3 or self.latent_dim % len(self.levels)):
            raise ValueError(
                f"fsq_levels must be 3 or more each, and latent_dim {self.latent_dim} a multiple of their number, "
                f"got {self.fsq_levels}"
            )

    @classmethod
    def preset(cls, name: str, size: str = "base") -> TivTokConfig:
        """ "t128", "t512" or "t1024" (paper Table 1) in size "small", "base" (the paper's) or "large"; or "tiny".

        Raises:
            ValueError: no such preset or size.
        """
        if name == "tiny":
            return _TINY
        if name not in _TOKENS:
            raise ValueError(f"preset must be one of {(*_TOKENS, 'tiny')}, got {name!r}")
        if size not in _SIZES:
            raise ValueError(f"size must be one of {tuple(_SIZES)}, got {size!r}")
        num_tiv, num_tv, latent_dim = _TOKENS[name]
        width, heads, layers = _SIZES[size]
        return cls(
            name=f"{name}-{size}",
            num_tiv=num_tiv,
            num_tv=num_tv,
            latent_dim=latent_dim,
            width=width,
            heads=heads,
            encoder_layers=layers,
            decoder_layers=layers,
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TivTokConfig:
        """The inverse of `to_dict`.

        Raises:
            ValueError: unknown keys.
        """
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"unknown config keys: {', '.join(sorted(unknown))}")
        lists_to_tuples: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**lists_to_tuples)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def replace(self, **changes: Any) -> TivTokConfig:
        return replace(self, **changes)

    @property
    def levels(self) -> tuple[int, ...] | None:
        """``fsq_levels`` where tokens are integer codes, None where they are not."""
        return self.fsq_levels if self.quantizer == "fsq" else None

    @property
    def num_codes(self) -> int | None:
        """How many codes there are, None where tokens are no codes."""
        return None if self.levels is None else prod(self.levels)

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def latent_grid(self) -> tuple[int, int] | None:
        """Rows and columns that latent tokens are spread over, in patches; None where they have no position."""
        return None if self.latent_positions == "none" else self.native_grid

    @property
    def nested_of(self) -> tuple[int, int] | None:
        """Of how many TIV and TV tokens the decoder may get the first, None where it gets them all."""
        return (self.num_tiv, self.num_tv) if self.nested else None

    @property
    def native_grid(self) -> tuple[int, int]:
        """Patch rows and columns of a frame of ``native_size``."""
        return -(-self.native_size[0] // self.patch[1]), -(-self.native_size[1] // self.patch[2])

    @property
    def patch_values(self) -> int:
        """Numbers in one RGB patch."""
        return 3 * prod(self.patch)

    @property
    def frames_per_group(self) -> int:
        return self.patch[0]

    @property
    def chunk_frames(self) -> int:
        """Video frames encoded together."""
        return self.groups_per_chunk * self.frames_per_group

    def num_groups(self, num_frames: int) -> int:
        """Frame groups of a video; the last one is filled up with its last frame."""
        return -(-num_frames // self.frames_per_group)

    def num_tokens(self, num_frames: int, tiv_sets: int = 1) -> int:
        """Tokens stored for a video of ``num_frames`` frames."""
        return tiv_sets * self.num_tiv + self.num_groups(num_frames) * self.num_tv

    def compression_rate(self, num_frames: int, height: int, width: int, tiv_sets: int = 1) -> float:
        """Stored values over RGB values: tokens * D / (3 * frames * height * width)."""
        return self.num_tokens(num_frames, tiv_sets) * self.latent_dim / (3 * num_frames * height * width)


_CHOICES = {
    "decoder": ("shared", "per_frame"),
    "quantizer": ("none", "softvq", "fsq"),
    "latent_positions": ("none", "grid", "tiv-grid"),
    "encoder_time": ("rotary", "none"),
    "patch_positions": ("rotary", "learned"),
    "initialization": ("vit", "local"),
}
# name: (N_TIV, N_TV, D)
_TOKENS = {"t128": (96, 8, 128), "t512": (384, 32, 32), "t1024": (768, 64, 16)}
# name: (width, heads, layers), the usual ViT sizes; "base" is the paper's
_SIZES = {"small": (384, 6, 12), "base": (768, 12, 12), "large": (1024, 16, 24)}

_TINY = TivTokConfig(
    name="tiny",
    num_tiv=24,
    num_tv=4,
    latent_dim=32,
    width=192,
    heads=6,
    encoder_layers=3,
    decoder_layers=3,
    native_size=(64, 64),
    qk_norm=True,
    rope_theta=20.0,
    latent_positions="grid",
    encoder_time="none",
    initialization="local",
)
