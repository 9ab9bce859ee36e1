import pytest
import torch
from image_models import make_stable_diffusion


@pytest.fixture(scope="session")
def image_model():
    """Stable Diffusion 1.x in small; tests leave it as it is."""
    return make_stable_diffusion()


@pytest.fixture(scope="session")
def second_image_model():
    """Stable Diffusion 2.x in small; tests leave it as it is."""
    return make_stable_diffusion("2.x")


@pytest.fixture(scope="session")
def image_folder(image_model, tmp_path_factory):
    """The first in diffusers' format; copy it before writing into it."""
    path = tmp_path_factory.mktemp("image") / "model"
    image_model.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def frame_by_frame():
    """A function that gives an image and a video network the same frames, and both answers."""

    @torch.no_grad()
    def compare(image, video, frames=3, side=(10, 14)):
        config = image.config
        latents = torch.randn(2, frames, config.in_channels, *side)
        tokens = torch.randn(2, 7, config.cross_attention_dim)
        timestep = torch.tensor([931, 17])
        expected = image(
            latents.flatten(0, 1),
            timestep.repeat_interleave(frames),
            tokens.repeat_interleave(frames, dim=0),
        ).sample.unflatten(0, (2, frames))
        made = video(latents, timestep, tokens, torch.tensor([8.0, 13.0])).sample
        return made, expected

    return compare
