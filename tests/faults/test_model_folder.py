"""A model folder with one error is refused by name; no pickle is ever opened."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from magicvideo.atomic_io import write_checksums
from magicvideo.cli import run
from magicvideo.errors import UserError
from magicvideo.pipelines.request import GenerationSettings
from magicvideo.pipelines.text_to_video import MagicVideoPipeline

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
EVERY_FILE = [
    "model_index.json",
    "words.txt",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer.json",
    "unet/config.json",
    "image_conditioner/diffusion_pytorch_model.safetensors",
    "image_encoder/model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    TEXT,
    UNET,
]


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy of the tiny model to break."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def assert_refused(folder, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        MagicVideoPipeline.from_pretrained(folder)
    assert str(caught.value).endswith(".")


def edit_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_an_untouched_copy_is_accepted(folder):
    MagicVideoPipeline.from_pretrained(folder)


@pytest.mark.parametrize("name", EVERY_FILE)
def test_a_missing_file(folder, name):
    (folder / name).unlink()
    assert_refused(folder, Path(name).name)


@pytest.mark.parametrize("name", EVERY_FILE)
def test_a_file_with_one_flipped_bit(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    assert_refused(folder, f"{name} is damaged")


@pytest.mark.parametrize("name", EVERY_FILE)
def test_a_truncated_file(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) - 3])
    assert_refused(folder, f"{name} is damaged")


def test_an_unexpected_file(folder):
    (folder / "unet" / "notes.txt").write_text("mine")
    assert_refused(folder, "unet/notes.txt does not belong to the folder")


def test_a_folder_without_sums(folder):
    (folder / "SHA256SUMS").unlink()
    assert_refused(folder, "has no SHA256SUMS")


def test_no_pickle_is_opened(folder, tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    for component in ("unet", "text_encoder"):
        for path in (folder / component).glob("*.safetensors"):
            path.unlink()
        (folder / component / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    write_checksums(folder)
    assert_refused(folder, "pytorch_model.bin is a pickle")
    assert not (tmp_path / "sprung").exists()


# From here on the sums are right: the folder was written this way.


@pytest.mark.parametrize("name", [UNET, TEXT])
def test_truncated_weights_with_matching_checksums(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-3])
    write_checksums(folder)
    assert_refused(folder, f"{name} is not a safetensors file")


@pytest.mark.parametrize("content", [b"", b"1234", b"\xff" * 64, b"\x02" + b"\0" * 7 + b"[]"])
def test_weights_that_are_not_safetensors(folder, content):
    (folder / UNET).write_bytes(content)
    write_checksums(folder)
    assert_refused(folder, f"{UNET} is not a safetensors file")


@pytest.mark.parametrize(
    ("name", "key"),
    [(UNET, "conv_in.weight"), (TEXT, "embeddings.token_embedding.weight")],
)
def test_a_missing_tensor(folder, name, key):
    edit_tensors(folder / name, lambda tensors: tensors.pop(key))
    write_checksums(folder)
    assert_refused(folder, f"{name} lacks the tensor .*{key}")


@pytest.mark.parametrize("name", [UNET, TEXT])
def test_an_unexpected_tensor(folder, name):
    edit_tensors(folder / name, lambda tensors: tensors.update(extra=torch.zeros(2)))
    write_checksums(folder)
    assert_refused(folder, f"{name} contains the unknown tensor extra")


@pytest.mark.parametrize(
    ("name", "key"),
    [(UNET, "conv_out.bias"), (TEXT, "embeddings.position_embedding.weight")],
)
def test_a_tensor_of_another_shape(folder, name, key):
    edit_tensors(folder / name, lambda tensors: tensors.update({key: torch.zeros(17)}))
    write_checksums(folder)
    assert_refused(folder, rf"{name} holds .*{key} with shape \[17\]; .* (asks for|needs)")


def test_a_configuration_that_is_not_the_weights(folder):
    edit_json(folder / "unet/config.json", lambda config: config.update(in_channels=7))
    write_checksums(folder)
    assert_refused(folder, r"conv_in.weight with shape \[8, 3, 3, 3\]; .* \[8, 7, 3, 3\]")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("unet", {"attention_head_dim": 3}),
        ("text_encoder", {"hidden_size": "wide"}),
        ("text_encoder", {"dtype": "float17"}),
    ],
)
def test_a_configuration_of_no_known_network(folder, name, change):
    edit_json(folder / name / "config.json", lambda config: config.update(change))
    write_checksums(folder)
    assert_refused(folder, f"{name}/config.json is not a valid network configuration")


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("unet", {"layers_per_block": 10**7}, "layers_per_block is 10000000; it must be"),
        ("unet", {"norm_num_groups": 0}, "norm_num_groups is 0; it must be at least 1"),
        ("text_encoder", {"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000"),
        ("vae", {"scaling_factor": 0}, "scaling_factor is 0; it must be above 0"),
    ],
)
def test_a_configuration_of_absurd_size(folder, name, change, sentence):
    edit_json(folder / name / "config.json", lambda config: config.update(change))
    write_checksums(folder)
    assert_refused(folder, sentence)


def test_a_schedule_without_numbers(folder):
    path = folder / "scheduler/scheduler_config.json"
    edit_json(path, lambda config: config.update(trained_betas=[0.1, float("nan")]))
    write_checksums(folder)
    assert_refused(folder, "trained_betas is nan; it must be a finite number")


@pytest.mark.parametrize("name", [UNET, TEXT])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(folder, name, value):
    spoilt = []

    def spoil(tensors):
        spoilt.append(sorted(tensors)[-1])
        tensors[spoilt[0]].flatten()[-1] = value

    edit_tensors(folder / name, spoil)
    write_checksums(folder)
    assert_refused(folder, f"{spoilt[0].removeprefix('text_model.')} holds numbers that are not")


def test_weights_of_whole_numbers(folder):
    edit_tensors(folder / UNET, lambda t: t.update({"conv_in.bias": t["conv_in.bias"].int()}))
    write_checksums(folder)
    assert_refused(folder, "conv_in.bias holds int32; weights are floating-point numbers")


def test_an_adapter_inside_of_an_encoder(folder):
    (folder / "text_encoder/adapter_config.json").write_text("{}")
    write_checksums(folder)
    assert_refused(folder, "adapter_config.json would change the network")


@pytest.mark.parametrize(
    "change",
    [
        {"attn_implementation": "stranger/kernel"},
        {"_attn_implementation": "stranger/kernel"},
        {"text_config": {"quantization_config": {"quant_method": "gptq", "bits": 4}}},
        {"transformers_weights": "../other.safetensors"},
    ],
)
def test_a_configuration_that_fetches_code_or_other_weights(folder, change):
    edit_json(folder / "text_encoder/config.json", lambda config: config.update(change))
    write_checksums(folder)
    assert_refused(folder, "by which code or other weights would be loaded")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"unet": ["os", "system"]}, "names the class system for unet; it must be VideoUNet"),
        ({"vae": ["diffusers", "VideoUNet"]}, "must be PatchAutoencoder or AutoencoderKL or V"),
        ({"unet": None}, "is invalid: components.unet"),
        ({"safety": ["x", "Y"]}, "is invalid: safety"),
        ({"generation_defaults": {"fps": "fast"}}, "is invalid: generation_defaults"),
    ],
)
def test_an_index_that_names_other_things(folder, change, sentence):
    edit_json(folder / "model_index.json", lambda index: index.update(change))
    write_checksums(folder)
    assert_refused(folder, sentence)


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "vae/config.json"])
@pytest.mark.parametrize(
    ("content", "sentence"), [("{", "is not valid JSON"), ("[1]", "is not a JSON object")]
)
def test_files_that_are_not_json_objects(folder, name, content, sentence):
    (folder / name).write_text(content)
    write_checksums(folder)
    assert_refused(folder, f"{name} {sentence}")


@pytest.mark.parametrize("name", ["tokenizer/tokenizer.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("content", ["{", '{"a":' + "[" * 100_000])
def test_an_invalid_tokenizer_or_scheduler(folder, name, content):
    (folder / name).write_text(content)
    write_checksums(folder)
    assert_refused(folder, name.partition("/")[0])


def test_a_tokenizer_of_another_encoder(folder):
    def count_from_a_million(content):
        vocabulary = content["model"]["vocab"]
        content["model"]["vocab"] = {token: 10**6 + id for token, id in vocabulary.items()}

    edit_json(folder / "tokenizer/tokenizer.json", count_from_a_million)
    write_checksums(folder)
    with pytest.raises(UserError, match=r"token id \d+, but the text encoder has only \d+"):
        MagicVideoPipeline.from_pretrained(folder)("fox", num_inference_steps=1, num_frames=2)


def test_words_in_another_encoding_cost_no_more_than_hints(folder):
    (folder / "words.txt").write_bytes("caf\u00e9\nfox\n".encode("latin-1"))
    write_checksums(folder)
    assert "fox" in MagicVideoPipeline.from_pretrained(folder).words


@pytest.mark.parametrize("component", ["unet", "interpolator", "vae", "upscaler"])
def test_overflowing_weights_give_an_error_and_no_black_video(folder, component):
    path = folder / component / "diffusion_pytorch_model.safetensors"
    edit_tensors(path, lambda tensors: [one.fill_(3e38) for one in tensors.values()])
    write_checksums(folder)
    with pytest.raises(UserError, match="numbers that are not finite"):
        MagicVideoPipeline.from_pretrained(folder)("fox", num_inference_steps=2, num_frames=2)


@pytest.mark.parametrize("shape", [(1, 2, 4, 999, 5), (1, 7, 3, 4, 4), (2, 2, 3, 4, 4)])
def test_latents_of_another_shape_are_refused(tiny_model, shape):
    pipeline = MagicVideoPipeline.from_pretrained(tiny_model)
    settings = GenerationSettings(stages=("keyframes",), num_frames=2, num_inference_steps=1)
    (request,) = pipeline.build_requests(["fox"], [1], settings)
    with pytest.raises(UserError, match="latents of a video have shape"):
        pipeline.decode_and_upscale(request, torch.zeros(shape))


def test_a_folder_that_is_not_a_model(tmp_path):
    assert_refused(tmp_path, "is not a model folder: it has no model_index.json")
    assert_refused(tmp_path / "none", "model folder .*none does not exist")


@pytest.mark.parametrize("verb", [["info"], ["generate", "a cat", "--model"]])
def test_the_command_line_answers_in_one_sentence(folder, verb, capsys, monkeypatch):
    monkeypatch.chdir(folder.parent)
    (folder / UNET).unlink()
    assert run([*verb, str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "diffusion_pytorch_model.safetensors" in error
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
