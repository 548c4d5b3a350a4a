"""Model ids: which weights made which tokens.

An id is made once, from what is stored, and kept in the weights file's metadata. So it stays the same when
`TivTokConfig` gets a new field, and when the weights are converted to another dtype.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields

import torch
from torch import Tensor

from tivtok.model.config import TivTokConfig

_LENGTH = 16  # hexadecimal digits

# The fields that TivTokConfig had, in order, while ids were made from its repr and were not stored.
_FIELDS_OF_UNSTORED = [
    "name",
    "num_tiv",
    "num_tv",
    "latent_dim",
    "width",
    "heads",
    "encoder_layers",
    "decoder_layers",
    "mlp_ratio",
    "patch",
    "groups_per_chunk",
    "native_size",
    "decoder",
    "quantizer",
    "codebook_size",
    "softvq_temperature",
    "qk_norm",
    "rope_theta",
    "latent_positions",
]


def new_model_id(config: TivTokConfig, weights: Mapping[str, Tensor]) -> str:
    """Make the id of a model that has none: a hash of its weights, and of its config's fields that are no defaults."""
    digest = hashlib.sha256(json.dumps(_beyond_defaults(config), sort_keys=True).encode())
    for name, x in sorted(weights.items()):
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        digest.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:_LENGTH]


def unstored_model_id(config: TivTokConfig, weights: Mapping[str, Tensor]) -> str:
    """Make the id of a checkpoint from before ids were stored, the way it was made then: token files have it.

    Args:
        weights: in the order of the model's ``state_dict``.
    """
    if not _beyond_defaults(config).keys() <= set(_FIELDS_OF_UNSTORED):
        return new_model_id(config, weights)  # no checkpoint of that time
    values = ", ".join(f"{name}={getattr(config, name)!r}" for name in _FIELDS_OF_UNSTORED)
    digest = hashlib.sha256(f"TivTokConfig({values})".encode())
    for name, x in weights.items():
        digest.update(name.encode())
        digest.update(x.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:_LENGTH]


def _beyond_defaults(config: TivTokConfig) -> dict[str, object]:
    return {f.name: getattr(config, f.name) for f in fields(config) if getattr(config, f.name) != f.default}
