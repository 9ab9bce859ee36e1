"""Our CLIP encoders against `CLIPModel` and the processor of transformers."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import make_tiny_pipeline
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

from magicvideo.data.sources.synthetic import all_scenes, render_frame
from magicvideo.evaluation.networks.clip import CLIPEncoder
from magicvideo.evaluation.networks.extractors import locate_folder
from magicvideo.models.conditioning import clip_preprocess

SIDE, LARGE, FRAMES, PROJECTION = 224, 256, 4, 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small CLIP that looks at frames of the size of ViT-B/32."""
    pipeline, path = make_tiny_pipeline(), tmp_path_factory.mktemp("networks") / "clip"
    towers = {"text": pipeline.text_encoder, "vision": pipeline.image_encoder}
    configs = {f"{kind}_config": tower.config.to_dict() for kind, tower in towers.items()}
    for config in configs.values():
        config["projection_dim"] = PROJECTION
    configs["vision_config"] |= {"image_size": SIDE, "patch_size": 32}
    CLIPModel(CLIPConfig(**configs, projection_dim=PROJECTION)).save_pretrained(path)
    pipeline.tokenizer.save_pretrained(path)
    CLIPImageProcessorPil().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def clip(folder):
    return CLIPEncoder(locate_folder(str(folder), "CLIP"), torch.device("cpu"))


@pytest.fixture(scope="module")
def theirs(folder):
    """Functions of transformers that preprocess frames and embed frames and captions."""
    model = CLIPModel.from_pretrained(folder).eval()
    pictures = CLIPImageProcessorPil.from_pretrained(folder)
    words = AutoTokenizer.from_pretrained(folder)

    def prepare(frames):
        return pictures([Image.fromarray(frame) for frame in frames], return_tensors="pt")

    def embed(prepared):
        return model.get_image_features(**prepared).pooler_output

    def read(caption):
        given = words([caption], truncation=True, return_tensors="pt")
        return model.get_text_features(**given).pooler_output[0]

    with torch.inference_mode():
        yield prepare, embed, read


def pixels(frames):
    return torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1


def shapes(size):
    return np.stack([render_frame(scene, 0.3, size) for scene in all_scenes()[:FRAMES]])


def test_frames_of_its_own_size_are_embedded_as_by_transformers(clip, theirs):
    prepare, embed, _ = theirs
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, SIDE, SIDE, 3), np.uint8)
    expected = embed(prepare(frames)).numpy()
    assert expected.shape == (FRAMES, PROJECTION)
    assert np.ptp(expected, axis=0).min() > 1e-2  # frames are told apart
    assert clip.embed_frames(pixels(frames)) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_caption_is_embedded_as_by_transformers(clip, theirs):
    _, _, read = theirs
    for caption in ("a dog", "a woman surfing, blue background"):  # the second is cut
        assert clip.embed_caption(caption) == pytest.approx(read(caption).numpy(), abs=1e-5)


def test_larger_frames_are_resized_nearly_as_by_transformers(clip, theirs):
    """docs/evaluation.md says by how much: Pillow rounds and cuts off after each of two passes."""
    prepare, embed, _ = theirs
    noise = np.random.default_rng(0).integers(0, 256, (FRAMES, LARGE, LARGE, 3), np.uint8)
    for frames, most, mean in ((shapes(LARGE), 3.3, 0.0043), (noise, 23.3, 0.357)):
        prepared = prepare(frames)
        ours = clip_preprocess(clip._image, pixels(frames))
        deviations = torch.tensor(CLIPImageProcessorPil().image_std)[:, None, None]
        levels = 255 * deviations * (ours - prepared["pixel_values"]).abs()
        assert levels.max().item() == pytest.approx(most, abs=0.1)
        assert levels.mean().item() == pytest.approx(mean, rel=0.05)
        expected = embed(prepared).numpy()
        assert clip.embed_frames(pixels(frames)) == pytest.approx(expected, abs=5e-3)
