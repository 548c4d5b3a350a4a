import numpy as np
import pytest

from tivtok import TivTokConfig
from tivtok.training import TrainConfig
from tivtok.video import VideoWriter

MODEL = TivTokConfig(
    name="minimal",
    num_tiv=4,
    num_tv=2,
    latent_dim=8,
    width=32,
    heads=2,
    encoder_layers=1,
    decoder_layers=1,
    groups_per_chunk=2,
    native_size=(16, 16),
)


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    """Moving gradients in three files, one of them held out."""
    data = tmp_path / "clips"
    data.mkdir()
    y, x = np.mgrid[:24, :32]
    for i, name in enumerate(("a", "b", "test")):
        with VideoWriter(data / f"{name}.mp4", fps=10, width=32, height=24) as writer:
            for t in range(12):
                plane = (x * (i + 3) + y * 5 + t * 9) % 256
                writer.write(np.stack([plane, 255 - plane, plane // 2], axis=-1).astype(np.uint8))
    return TrainConfig(
        output=tmp_path / "run",
        data=data,
        model=MODEL,
        steps=6,
        batch_size=2,
        held_out=("test*",),
        short_sides=(16, 20),
        strides=(1,),
        optimizer="muon",
        evaluate_every=3,
        save_every=3,
    )
