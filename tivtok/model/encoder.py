"""Scope-Induced Factorization (paper Sec. 3.2, Eq. 3-4): one transformer, two scopes."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from tivtok.attention import SifLayout, sif_attention
from tivtok.model.blocks import Blocks, Places, learned_tokens
from tivtok.model.config import TivTokConfig
from tivtok.model.patchify import patch_grid, patchify
from tivtok.model.rope import Rotary, rotary_table


class Encoder(nn.Module):
    """A chunk of video -> its TIV tokens and the TV tokens of each frame group.

    TIV queries see the whole chunk; TV and patch queries see the TIV tokens and their own frame group. The paper does
    not say what patch queries see. If they saw other frames, TV tokens would read these from the patches, from the
    second layer on.
    """

    def __init__(self, config: TivTokConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.patch_values, config.width)
        self.places = Places(config) if config.patch_positions == "learned" else None
        self.tiv = learned_tokens(config.num_tiv, config.width)
        self.tv = learned_tokens(config.num_tv, config.width)
        self.blocks = Blocks(config, config.encoder_layers)
        self.norm = nn.LayerNorm(config.width)
        self.to_latent = nn.Linear(config.width, config.latent_dim)

    def forward(
        self, video: Tensor, *, group: ProcessGroup | DeviceMesh | None = None, first_group: int = 0
    ) -> tuple[Tensor, Tensor]:
        """video (B, 3, F, H, W), multiples of the patch -> TIV (B, N_TIV, D) and TV (B, groups, N_TV, D).

        Args:
            group: processes over which the frame groups of a chunk that is too large for one device are spread, as in
                `sif_attention`. Each passes the frames that it has, gets their TV tokens and, like all, the TIV tokens;
                gradients are shares, whose sum over the processes is that of one process.
            first_group: which frame group of the chunk its frames begin with.
        """
        config = self.config
        batch, _, frames, height, width = video.shape
        grid = patch_grid(frames, height, width, config.patch)
        patches = self.embed(patchify(video, config.patch))
        if self.places is not None:
            patches = patches + self.places(*grid[1:])
        groups, num_patches = patches.shape[1:3]

        tiv = self.tiv.expand(batch, -1, -1)
        tv = self.tv.expand(batch, groups, -1, -1)
        x = torch.cat([tiv, torch.cat([tv, patches], dim=2).flatten(1, 2)], dim=1)  # (B, rows, width)
        layout = self._layout(batch, groups, config.num_tv + num_patches)
        rotary = self._rotary(grid, first_group, video)
        for block in self.blocks:
            x, _ = block(x, partial(sif_attention, layout=layout, group=group), rotary)

        latents = torch.cat(
            [
                x[:, : config.num_tiv],
                x[:, config.num_tiv :].unflatten(1, (groups, -1))[:, :, : config.num_tv].flatten(1, 2),
            ],
            dim=1,
        )
        tiv, tv = self.to_latent(self.norm(latents)).split([config.num_tiv, groups * config.num_tv], dim=1)
        return tiv, tv.unflatten(1, (groups, config.num_tv))

    def _layout(self, batch: int, groups: int, frame_tokens: int) -> SifLayout:
        return SifLayout.uniform(batch, self.config.num_tiv, groups, frame_tokens)

    def _rotary(self, grid: tuple[int, int, int], first_group: int, like: Tensor) -> Rotary:
        config = self.config
        groups, rows, columns = grid
        tables = rotary_table(
            config.head_dim,
            config.num_tv,
            (first_group + groups, rows, columns),
            config.rope_theta,
            config.num_tiv,
            config.latent_grid,
            like.device,
            placed=config.latent_positions == "grid",
            timed=config.encoder_time == "rotary",
            nested_of=config.nested_of,
        )
        if first_group == 0:
            return tables
        here = config.num_tiv + first_group * (config.num_tv + rows * columns)
        cos, sin = (torch.cat([table[: config.num_tiv], table[here:]]) for table in tables)
        return cos, sin
