"""``tivtok swap``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tivtok import editing
from tivtok.cli.options import ModelOption, StoredDtypeOption, calibration_for
from tivtok.cli.output import check_output, print_rows, token_rows
from tivtok.tokens import Tokens


def swap(
    tiv_from: Annotated[Path, typer.Argument(metavar="A", help="The token file whose TIV tokens to take.")],
    tv_from: Annotated[Path, typer.Argument(metavar="B", help="The one whose TV tokens, length and size to take.")],
    result: Annotated[Path, typer.Argument(metavar="OUT", help="The token file to write.")],
    dtype: StoredDtypeOption = "float16",
    model: ModelOption = "tiny",
) -> None:
    """Combine what stays the same in A with what changes in B.

    Example: tivtok swap a.tivtok b.tivtok mixed.tivtok
    """
    for source in (tiv_from, tv_from):
        check_output(result, source)
    calibration = calibration_for(dtype, model)
    editing.swap(Tokens.load(tiv_from), Tokens.load(tv_from)).save(result, dtype, calibration)
    print_rows({"wrote": str(result)} | token_rows(Tokens.open(result), result.stat().st_size))
