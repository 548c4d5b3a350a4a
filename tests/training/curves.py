"""The curves of two runs that are one but for rounding."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

# Gradients jump where a rectifier or a maximum in LPIPS or DINOv2 chooses by the last bit: 2.5e-3 was seen, for one
# step, on a processor without AVX. One that is summed where it should be averaged is twice as large.
OF_GRADIENTS = ("gradient_norm", "discriminator_gradient_norm", "adaptive_weight")
JUMPS = 2e-2


def assert_same_curve(expected: Sequence[dict[str, float]], got: Sequence[dict[str, float]], rel: float) -> None:
    """What both runs logged at each step: losses to ``rel``, what is measured of gradients to that or `JUMPS`."""
    for one, other in zip(expected, got, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {"seconds"}:
            allowed = max(rel, JUMPS) if name in OF_GRADIENTS else rel
            assert other[name] == pytest.approx(one[name], rel=allowed), f"{name} of step {one['step']}"
