"""Metrics of reconstructions. `frames` needs no weights; `lpips` and `i3d` + `fvd` need those of `tivtok weights`."""

from tivtok.metrics.frames import PROTOCOL, frame_changes, psnr, seams, ssim

__all__ = ["PROTOCOL", "frame_changes", "psnr", "seams", "ssim"]
