"""Random numbers of a run, each a function of the seed, a purpose and a number.

So there is no generator state to save, and a resumed run, or one on another number of processes, draws the same.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """Purpose of random numbers; the values are part of what a seed means."""

    ORDER = 0  # of the videos, by epoch
    CLIP = 1  # which part of a video and how it is augmented, by clip
    LOSS = 2  # which frames the feature losses see and how the discriminator's are augmented, by step
    MODEL = 3  # torch's own generator during a step, should a module draw from it (none does now)
    LENGTH = 4  # how many frame groups the clips have, by step
    CHUNKS = 5  # how many chunks the clips have, by step
    SIBLINGS = 6  # whether chunks are decoded through another's TIV set, by step
    WITHOUT_TV = 7  # which clips are decoded without their TV tokens, by step
    CONSISTENCY = 8  # how the discriminator's frames are augmented once more, by step
    MIX = 9  # which videos are drawn where data sets are mixed, by clip
    NESTED = 10  # how many tokens are decoded, by step
    NOISE = 11  # what is added to the tokens, by step


def generator(seed: int, purpose: Purpose, number: int) -> np.random.Generator:
    return np.random.default_rng((seed, purpose, number))
