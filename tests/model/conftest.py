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


@pytest.fixture(params=["shared", "per_frame", "shared, grid", "per_frame, grid", "shared, tiv-grid"])
def model(request) -> TivTok:
    """A small random model in float64, where equal means equal."""
    torch.manual_seed(0)
    decoder, *positions = request.param.split(", ")
    config = MINIMAL.replace(decoder=decoder, latent_positions=positions[0] if positions else "none")
    model = TivTok(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # away from the near-zero initialisation, so that differences show
            parameter.normal_(std=0.3)
    return model
