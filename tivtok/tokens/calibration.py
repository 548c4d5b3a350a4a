"""Calibration of a model's tokens for coded files: how finely they are quantised, and how they are spread."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from torch import Tensor

from tivtok.checkpoints import CALIBRATION_FILE, CheckpointError, find_checkpoint
from tivtok.files import replacing
from tivtok.tokens.codecs import Codecs, Coded, Codes, Floats, Int8, codec_of
from tivtok.tokens.format import STORED_DTYPES, StoredDtype, TokensError


@dataclass(frozen=True)
class Calibration:
    """Codecs for the tokens of a model.

    A coded file holds those it was written with, so another calibration leaves it readable.

    Attributes:
        codecs: of TIV and of TV tokens.
        model_id: the model whose tokens these are for.
    """

    codecs: Codecs
    model_id: str

    @classmethod
    def of(cls, tiv: Tensor, tv: Tensor, step: float, model_id: str) -> Calibration:
        """Fit the spread of TIV sets (n, N_TIV, D) and frame groups (n, N_TV, D), quantised in steps of ``step``."""
        return cls(Codecs(_fitted(tiv, step), _fitted(tv, step)), model_id)

    @classmethod
    def from_pretrained(cls, path_or_name: str | Path) -> Calibration:
        """Load the calibration that lies beside a checkpoint.

        Raises:
            CheckpointError: there is no such checkpoint, or none is beside it, or it is damaged.
        """
        path = find_checkpoint(path_or_name) / CALIBRATION_FILE
        if not path.is_file():
            raise CheckpointError(
                f"the checkpoint {path_or_name} has no {CALIBRATION_FILE}, which coded files need: "
                "`tivtok calibrate` writes it"
            )
        try:
            stated = json.loads(path.read_text(encoding="utf-8"))
            codecs = Codecs(codec_of("coded", stated["tiv"]), codec_of("coded", stated["tv"]))
            return cls(codecs, str(stated["model_id"]))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from None

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write it into a checkpoint's folder."""
        stated = {name: codec.parameters() for name, codec in self.codecs._asdict().items()}
        with replacing(Path(folder) / CALIBRATION_FILE) as temporary:
            temporary.write_text(json.dumps(stated | {"model_id": self.model_id}) + "\n", encoding="utf-8")


def codecs_for(
    dtype: str, calibration: Calibration | None, model_id: str, levels: tuple[int, ...] | None, ragged: bool = False
) -> Codecs | None:
    """The codecs of a dtype that is packed; None for one that is stored as it is.

    Codes of FSQ are always packed, and so are tokens whose numbers differ (``ragged``).

    Raises:
        TokensError: there is no such dtype, or "coded" has no calibration or that of another model.
    """
    if levels is not None:
        return Codecs(Codes(levels), Codes(levels))
    if dtype in STORED_DTYPES:
        return Codecs(Floats(dtype), Floats(dtype)) if ragged else None
    if dtype == "int8":
        return Codecs(Int8(), Int8())
    if dtype != "coded":
        raise TokensError(f"dtype must be one of {get_args(StoredDtype)}, got {dtype!r}")
    if calibration is None:
        raise TokensError('dtype "coded" needs the calibration of the model, got none')
    if calibration.model_id != model_id:
        raise TokensError(f"the calibration must be of model {model_id}, got one of {calibration.model_id}")
    return calibration.codecs


def _fitted(x: Tensor, step: float) -> Coded:
    values = x.detach().cpu().double().flatten(0, -2).numpy()
    if not len(values):  # models without TIV tokens
        return Coded.fitted(np.zeros(values.shape[1]), np.ones(values.shape[1]), step)
    return Coded.fitted(values.mean(0), values.std(0), step)
