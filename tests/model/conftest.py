import pytest
import torch

from tivtok import TivTok, TivTokConfig

MINIMAL = TivTokConfig(
    name="minimal",
    num_tiv=5,
    num_tv=2,
    latent_dim=6,
    width=32,
    heads=2,
    encoder_layers=2,
    decoder_layers=2,
    native_size=(16, 16),
)


CHANGES = {
    "shared": {},
    "per_frame": {"decoder": "per_frame"},
    "shared, grid": {"latent_positions": "grid"},
    "per_frame, grid": {"decoder": "per_frame", "latent_positions": "grid"},
    "shared, tiv-grid": {"latent_positions": "tiv-grid"},
    "shared, places": {"patch_positions": "learned"},
}


@pytest.fixture(params=CHANGES)
def model(request) -> TivTok:
    """A small random model in float64, where equal means equal."""
    torch.manual_seed(0)
    model = TivTok(MINIMAL.replace(**CHANGES[request.param])).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # away from the near-zero initialisation, so that differences show
            parameter.normal_(std=0.3)
    return model
