"""The card of a model folder, read by the library of the Hugging Face Hub."""

import json
import re

import pytest
from huggingface_hub import ModelCard

from magicvideo.atomic_io import atomic_folder, hash_folder, verify_checksums
from magicvideo.errors import UserError
from magicvideo.pipelines.model_folder import BUNDLED_MODEL_DIR
from magicvideo.training.export import CARD, write_model_card


@pytest.fixture
def folder(tmp_path):
    index = {
        "_class_name": ["pipeline", "MagicVideoPipeline"],
        "unet": ["magicvideo", "VideoUNet"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "default_steps": 7,
        "license": "Apache-2.0",
    }
    training = {
        "recipe": "mine",
        "steps": {"keyframes": 1300},
        "started_from": {"recipe": "emoji", "steps": {}},
    }
    path = tmp_path / "model"
    with atomic_folder(path) as partial:
        (partial / "model_index.json").write_text(json.dumps(index))
        (partial / "training.json").write_text(json.dumps(training))
    return path


def test_the_model_card_has_the_metadata_of_the_hub(folder, tmp_path):
    text = tmp_path / "text.md"
    text.write_text("## Data\n\nClips of shapes.\n")
    write_model_card(folder, text)
    card = ModelCard.load(folder / CARD)
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "text-to-video"
    assert card.data.library_name == "diffusers"
    for said in ("`unet` | VideoUNet (magicvideo)", "`keyframes` | 1,300", "recipe `emoji`"):
        assert said in card.text
    assert "default_steps" not in card.text
    assert "_class_name" not in card.text
    assert card.text.endswith("## Data\n\nClips of shapes.\n")


def test_a_licence_that_the_hub_does_not_list_keeps_its_name(folder):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "license": "Terms of ours"}))
    write_model_card(folder)
    data = ModelCard.load(folder / CARD).data
    assert (data.license, data.license_name) == ("other", "Terms of ours")


def test_a_model_keeps_its_identity_when_its_card_is_edited(folder):
    before = hash_folder(folder)
    write_model_card(folder)
    verify_checksums(folder)
    with atomic_folder(folder.with_name("copy")) as partial:
        for file in folder.glob("*.[jm][sd]*"):
            (partial / file.name).write_bytes(file.read_bytes())
    assert (folder.with_name("copy") / CARD).is_file()
    assert hash_folder(folder.with_name("copy")) == before


def test_text_that_cannot_be_read_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match=re.escape("nothing.md is not a text file")):
        write_model_card(folder, tmp_path / "nothing.md")


def test_the_bundled_model_has_a_card_with_data_limits_results_and_licence():
    card = ModelCard.load(BUNDLED_MODEL_DIR / CARD)
    index = json.loads((BUNDLED_MODEL_DIR / "model_index.json").read_text())
    assert card.data.license == index["license"].lower()
    for section in ("Usage", "Components", "Training", "Data", "Limits", "Results", "Licence"):
        assert f"\n## {section}\n" in card.text
    assert "magicvideo evaluate" in card.text
