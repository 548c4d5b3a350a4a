"""What a run is made of: sizes of the tokenizer and the generators, and how long they are trained."""

from __future__ import annotations

from dataclasses import dataclass

from examples.generate.flow import Sampling
from tivtok import TivTokConfig


@dataclass(frozen=True)
class Settings:
    """One run.

    Attributes:
        tokenizer: of 32x32 video.
        tokenizer_steps, tokenizer_batch: its training steps, and the clips of two chunks in each.
        videos: that the generators learn from.
        lengths: of the videos they learn to draw, in frames.
        width, layers, heads: of the generators' transformer.
        steps, batch_groups: their training steps, and the frame groups of all videos in each.
        tokenizer_rates, rates: peak learning rates of AdamW and Muon.
        euler_steps: in which a video is drawn.
        drawn: videos of each class and length to be measured.
    """

    tokenizer: TivTokConfig
    tokenizer_steps: int
    tokenizer_batch: int
    videos: int
    lengths: tuple[int, ...]
    width: int
    layers: int
    heads: int
    steps: int
    batch_groups: int
    drawn: int
    tokenizer_rates: tuple[float, float] = (2e-3, 0.02)
    rates: tuple[float, float] = (2e-3, 0.02)
    euler_steps: int = 50
    seed: int = 0

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.euler_steps)


# Three TIV tokens to a TV token in each chunk, as T128 has them. The encoder cannot tell the time, so that TV tokens
# are no clock (docs/factorisation.md). All tokens have places, and attention begins by looking near them: the loss
# after 300 steps was 0.17, and 0.48 with the usual initialisation, places for TIV tokens alone, and Muon at 0.05.
_TOKENIZER = TivTokConfig(
    name="shapes",
    num_tiv=12,
    num_tv=1,
    latent_dim=16,
    width=96,
    heads=3,
    encoder_layers=2,
    decoder_layers=2,
    native_size=(32, 32),
    qk_norm=True,
    rope_theta=20.0,
    latent_positions="grid",
    encoder_time="none",
    initialization="local",
)

SETTINGS = {
    "full": Settings(
        tokenizer=_TOKENIZER,
        tokenizer_steps=1000,
        tokenizer_batch=8,
        videos=1024,
        lengths=(16, 64, 256),
        width=96,
        layers=4,
        heads=3,
        steps=4000,
        batch_groups=192,
        drawn=6,
    ),
    "toy": Settings(
        tokenizer=_TOKENIZER.replace(width=48, heads=3, encoder_layers=1, decoder_layers=1),
        tokenizer_steps=40,
        tokenizer_batch=4,
        videos=48,
        lengths=(16, 64),
        width=32,
        layers=2,
        heads=2,
        steps=100,
        batch_groups=64,
        drawn=1,
        rates=(1e-2, 0.05),
        euler_steps=10,
    ),
}
