"""`tivtok list`: the official files of UCF-101 and Kinetics to lists that every command reads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from test_cli import fails

from tivtok.cli import main
from tivtok.video.sources import find_sources


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"video")


def test_ucf101(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", "YoYo/v_YoYo_g25_c05.avi", "YoYo/v_YoYo_g25_c06.avi"]
    videos, out = tmp_path / "UCF-101", tmp_path / "lists" / "train.csv"
    touch(*(videos / name for name in names[:2]))
    out.parent.mkdir()
    (tmp_path / "trainlist01.txt").write_text(f"{names[0]} 1\r\n{names[1]} 101\n{names[2]} 101\n\n")
    assert main(["list", "ucf101", str(videos), str(tmp_path / "trainlist01.txt"), str(out)]) == 0
    assert "2 videos, 1 of the split are missing" in capsys.readouterr().out
    found = find_sources(out).videos
    assert [os.path.normpath(ref.path) for ref in found] == [str(videos / name) for name in names[:2]]
    assert [ref.columns for ref in found] == [
        {"label": "ApplyEyeMakeup", "dataset": "ucf101"},
        {"label": "YoYo", "dataset": "ucf101"},
    ]
    (tmp_path / "testlist01.txt").write_text(f"{names[1]}\n")  # without numbers
    assert main(["list", "ucf101", str(videos), str(tmp_path / "testlist01.txt"), str(out)]) == 0
    assert len(find_sources(out).videos) == 1

    old = out.read_bytes()
    (tmp_path / "classInd.txt").write_text("1 ApplyEyeMakeup\n")
    error = fails(capsys, ["list", "ucf101", str(videos), str(tmp_path / "classInd.txt"), str(out)])
    assert "classInd.txt, line 1: expected Class/name.avi" in error
    (tmp_path / "none.txt").write_text(f"{names[2]} 101\n")
    error = fails(capsys, ["list", "ucf101", str(videos), str(tmp_path / "none.txt"), str(out)])
    assert "none of the 1 videos of the split is there" in error and out.read_bytes() == old


def test_kinetics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos, split, out = tmp_path / "k600", tmp_path / "train.csv", tmp_path / "list.csv"
    touch(videos / "abseiling" / "0347ZoDXyP0_000095_000105.mp4", videos / "-pE20eXBb6A_000003_000013.mp4")
    split.write_text(
        "label,youtube_id,time_start,time_end,split\n"
        "abseiling,0347ZoDXyP0,95,105,train\n"
        '"catching or throwing, ball",-pE20eXBb6A,3,13,train\n'
        "abseiling,gone,1,11,train\n"
    )
    assert main(["list", "kinetics600", str(videos), str(split), str(out)]) == 0
    assert "2 videos, 1 of the split are missing" in capsys.readouterr().out
    found = find_sources(out).videos
    assert [ref.name for ref in found] == ["0347ZoDXyP0_000095_000105.mp4", "-pE20eXBb6A_000003_000013.mp4"]
    assert [ref.columns["label"] for ref in found] == ["abseiling", "catching or throwing, ball"]
    assert {ref.columns["dataset"] for ref in found} == {"kinetics600"}
    split.write_text("label,youtube_id,time_start,time_end\nabseiling,a,b,c\n")
    assert "line 2: expected seconds" in fails(capsys, ["list", "kinetics600", str(videos), str(split), str(out)])
    split.write_text("id,label\n")
    assert "it lacks ['youtube_id'" in fails(capsys, ["list", "kinetics600", str(videos), str(split), str(out)])
