"""``tivtok list``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tivtok.cli.output import check_output, say
from tivtok.video.lists import kinetics, ucf101, write_list


class DataSet(StrEnum):
    UCF101 = "ucf101"
    KINETICS400 = "kinetics400"
    KINETICS600 = "kinetics600"
    KINETICS700 = "kinetics700"


def make_list(
    dataset: Annotated[DataSet, typer.Argument(help="Which one it is.", show_default=False)],
    videos: Annotated[Path, typer.Argument(help="The folder of its videos.", show_default=False)],
    split: Annotated[
        Path, typer.Argument(help="trainlist01.txt of UCF-101, say, or train.csv of Kinetics.", show_default=False)
    ],
    result: Annotated[Path, typer.Argument(metavar="OUT.csv", help="The list to write.", show_default=False)],
) -> None:
    """Make the list of a data set from its official split file, for `tivtok train`, `eval` and `encode-dir`.

    Its columns are path, label and dataset. Videos that are missing are counted and left out.

    Example: tivtok list ucf101 UCF-101/ ucfTrainTestlist/trainlist01.txt lists/ucf101-train-1.csv
    """
    check_output(result, split)
    listed = ucf101(videos, split) if dataset is DataSet.UCF101 else kinetics(videos, split)
    there, missing = write_list(result, listed, dataset.value)
    say(f"wrote {result}: {there} videos" + (f", {missing} of the split are missing" if missing else ""))
