import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from image_models import (
    EMBEDDING,
    FACTOR,
    PREDICTION,
    SIDE,
    original_layout,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_model import frames_of

from magicvideo.cli import run
from magicvideo.convert.diffusers_folder import read_checkpoint
from magicvideo.convert.stable_diffusion import inflate_stable_diffusion
from magicvideo.errors import UserError
from magicvideo.models.inflate import is_temporal_key
from magicvideo.pipelines.text_to_video import MagicVideoPipeline

# diffusers warns of an import that it makes itself
pytestmark = pytest.mark.filterwarnings("ignore:`Transformer2DModelOutput`:FutureWarning")

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(image_folder, tmp_path):
    """A copy to change."""
    return Path(shutil.copytree(image_folder, tmp_path / "source"))


def edit_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def as_saved(model, target):
    model.save_pretrained(target)


def half(model, target):
    model.save_pretrained(target, variant="fp16")
    for path in target.rglob("*.safetensors"):
        edit_tensors(path, lambda t: t.update({k: v.half() for k, v in t.items()}))


def sharded(model, target):
    model.save_pretrained(target, max_shard_size="300KB")
    assert len(list((target / "unet").glob("*.safetensors"))) > 2


def old_names(model, target):
    """As Stable Diffusion 1.5 was published, by older versions of both libraries."""
    model.save_pretrained(target)
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}

    def rename(tensors):
        for name in [name for name in tensors if ".attentions." in name]:
            new = name
            for current, before in old.items():
                new = new.replace(current, before)
            tensors[new] = tensors.pop(name)

    def add_prefix(prefix, to):
        def change(tensors):
            for name in [name for name in tensors if to in name]:
                tensors[prefix + name] = tensors.pop(name)
            tensors[f"{prefix}embeddings.position_ids"] = torch.arange(4)[None]

        return change

    edit_tensors(target / "vae" / "diffusion_pytorch_model.safetensors", rename)
    edit_tensors(target / "text_encoder/model.safetensors", add_prefix("text_model.", ""))
    edit_tensors(target / "safety_checker/model.safetensors", add_prefix("vision_model.", "on_m"))
    (target / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"no one reads this")


@pytest.mark.parametrize(
    ("kind", "version"),
    [(as_saved, "1.x"), (as_saved, "2.x"), (half, "1.x"), (sharded, "1.x"), (old_names, "1.x")],
)
def test_every_kind_of_folder_gives_the_same_model(
    image_model, second_image_model, tmp_path, frame_by_frame, kind, version
):
    image_model = {"1.x": image_model, "2.x": second_image_model}[version]
    kind(image_model, tmp_path / "source")
    accounts = inflate_stable_diffusion(
        tmp_path / "source", tmp_path / "out", num_frames=3, size=6 * FACTOR
    )
    model = MagicVideoPipeline.from_pretrained(tmp_path / "out")
    tolerance = 0.05 if kind is half else 1e-4
    made, expected = frame_by_frame(image_model.unet, model.unet)
    assert expected.std() > 0.3
    torch.testing.assert_close(made, expected, atol=tolerance, rtol=0)
    for part in ("vae", "text_encoder"):
        ours = getattr(model, part).state_dict()
        for name, tensor in getattr(image_model, part).state_dict().items():
            torch.testing.assert_close(ours[name], tensor, atol=2e-3 * (kind is half), rtol=0)
    checker = image_model.safety_checker.state_dict()
    for name, tensor in model.image_encoder.state_dict().items():
        torch.testing.assert_close(checker[name], tensor, atol=2e-3 * (kind is half), rtol=0)
    assert model.image_conditioner.config.embedding_dim == EMBEDDING
    assert (model.unet.config.num_frames, model.capabilities.height) == (3, 6 * FACTOR)
    assert model.scheduler.config.prediction_type == PREDICTION[version]
    assert model.scheduler.config.steps_offset == 1
    assert not model.scheduler.config.clip_sample
    torch.testing.assert_close(model.scheduler.alphas_cumprod, image_model.scheduler.alphas_cumprod)
    # nothing is unaccounted: what was stored is copied or refused
    stored = sum(len(load_file(path)) for path in (tmp_path / "source").rglob("*.safetensors"))
    assert sum(account.copied + account.refused for account in accounts) == stored + 1
    assert {account.component: account.new > 0 for account in accounts} == {
        "unet": True,
        "vae": False,
        "text_encoder": False,
        "image_encoder": False,
        "image_conditioner": True,
        "(next to them)": False,
    }


def test_a_model_without_an_image_encoder_generates_videos_and_refuses_images(folder, tmp_path):
    shutil.rmtree(folder / "safety_checker")
    edit_json(folder / "model_index.json", lambda i: i.update(safety_checker=[None, None]))
    out = tmp_path / "out"
    inflate_stable_diffusion(folder, out, num_frames=2, size=4 * FACTOR)
    assert not (out / "image_encoder").exists()
    model = MagicVideoPipeline.from_pretrained(out)
    assert frames_of(model, "a red dog", seed=1, num_inference_steps=2).shape == (1, 2, 3, 8, 8)
    with pytest.raises(UserError, match="This model accepts no image"):
        model("a dog", image=Image.new("RGB", (9, 7)))
    model.save_pretrained(tmp_path / "again")
    assert MagicVideoPipeline.from_pretrained(tmp_path / "again").image_encoder is None


def test_a_model_with_a_given_image_encoder_accepts_images(folder, tmp_path):
    (folder / "safety_checker").rename(tmp_path / "clip")
    edit_json(folder / "model_index.json", lambda i: i.pop("safety_checker"))
    out = tmp_path / "out"
    inflate_stable_diffusion(
        folder, out, num_frames=2, size=4 * FACTOR, image_encoder=tmp_path / "clip"
    )
    model = MagicVideoPipeline.from_pretrained(out)
    video = model("", image=Image.new("RGB", (9, 7)), seed=1, num_inference_steps=1)
    # text tokens are 64 wide and embeddings 14: a picture is told by all of its own 14
    assert video.videos[0].frames.isfinite().all()
    assert model.image_conditioner.linear.weight.shape == (64, EMBEDDING)


@pytest.mark.parametrize("version", ["1.x", "2.x"])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_single_file_gives_the_same_model(
    image_model, second_image_model, image_folder, tmp_path, frame_by_frame, version, suffix
):
    source = {"1.x": image_model, "2.x": second_image_model}[version]
    stored, beside = original_layout(source, version)
    path = tmp_path / f"model{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": stored | beside, "global_step": 7}, path)
    else:
        save_file(stored | beside, path)
    accounts = inflate_stable_diffusion(
        path,
        tmp_path / "out",
        num_frames=3,
        size=SIDE * FACTOR,
        tokenizer=image_folder / "tokenizer",
        prediction=None if version == "1.x" else "v_prediction",
    )
    model = MagicVideoPipeline.from_pretrained(tmp_path / "out")
    made, expected = frame_by_frame(source.unet, model.unet)
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=0)
    for part in ("vae", "text_encoder"):
        ours, theirs = getattr(model, part), getattr(source, part)
        assert all(torch.equal(ours.state_dict()[k], v) for k, v in theirs.state_dict().items())
    words = torch.tensor([[1, 4, 3]])
    with torch.no_grad():
        text, expected = model.text_encoder(words)[0], source.text_encoder(words)[0]
        picture = model.vae.decode(torch.ones(1, 4, 5, 6)).sample
        drawn = source.vae.decode(torch.ones(1, 4, 5, 6)).sample
    torch.testing.assert_close(text, expected)
    torch.testing.assert_close(picture, drawn)
    assert model.vae.config.scaling_factor == 0.18215
    assert model.scheduler.config.prediction_type == PREDICTION[version]
    assert accounts[-1].refused == len(beside)


@pytest.fixture
def single(image_model, image_folder, tmp_path):
    """A function that writes a changed single file, with a tokenizer beside it."""
    shutil.copytree(image_folder / "tokenizer", tmp_path / "tokenizer")

    def write(change):
        stored, beside = original_layout(image_model, "1.x")
        content = stored | beside
        change(content)
        save_file(content, tmp_path / "model.safetensors")
        return tmp_path / "model.safetensors"

    return write


SKIP = "model.diffusion_model.output_blocks.2.0.skip_connection.weight"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop(SKIP), f"lacks the tensor {SKIP}"),
        (lambda t: t.update({SKIP: torch.zeros(3, 5)}), rf"{SKIP} with shape \[3, 5\]; its"),
        (lambda t: t.update({"mystery": torch.zeros(1)}), "contains the unknown tensor mystery"),
        (lambda t: t.update({"alphas_cumprod": torch.ones(1000)}), "another noise schedule"),
        (lambda t: t.clear() or t.update({"x": torch.ones(1)}), "is not Stable Diffusion 1.x or"),
    ],
    ids=["missing", "misshapen", "foreign", "schedule", "nothing"],
)
def test_a_single_file_with_one_thing_wrong_is_refused_by_name(single, tmp_path, change, sentence):
    with pytest.raises(UserError, match=sentence):
        inflate_stable_diffusion(single(change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_settings_missing_in_a_single_file_must_be_given(second_image_model, single, tmp_path):
    path = single(lambda _: None)
    shutil.rmtree(tmp_path / "tokenizer")
    with pytest.raises(UserError, match=r"contains no tokenizer, .* --tokenizer"):
        inflate_stable_diffusion(path, tmp_path / "out")
    (tmp_path / "tokenizer").mkdir()
    save_file(original_layout(second_image_model, "2.x")[0], path)
    with pytest.raises(UserError, match="add --prediction v_prediction"):
        inflate_stable_diffusion(path, tmp_path / "out")


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("zipped", [True, False])
def test_no_pickle_is_opened(image_folder, folder, tmp_path, zipped):
    sprung, path = tmp_path / "sprung", tmp_path / "model.ckpt"
    content = {"state_dict": {"a": torch.ones(2)}, "callbacks": Trap(sprung)}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=r"could run code|cannot be read as a checkpoint"):
        inflate_stable_diffusion(path, tmp_path / "out", tokenizer=image_folder / "tokenizer")
    (folder / UNET).unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(UserError, match="only pickles, which can run code"):
        inflate_stable_diffusion(folder, tmp_path / "out")
    assert not sprung.exists()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            lambda f: edit_tensors(f / UNET, lambda t: t.pop("conv_out.bias")),
            "unet lacks the tensor conv_out.bias",
        ),
        (
            lambda f: edit_tensors(f / UNET, lambda t: t.update(extra=torch.zeros(1))),
            "unet contains the unknown tensor extra",
        ),
        (
            lambda f: edit_tensors(f / UNET, lambda t: t.update({"conv_out.bias": torch.ones(9)})),
            r"unet holds conv_out.bias with shape \[9\]; .* (asks for|needs) \[4\]",
        ),
        (
            lambda f: edit_tensors(
                f / "safety_checker/model.safetensors", lambda t: t.pop("visual_projection.weight")
            ),
            "safety_checker lacks the tensor visual_projection.weight",
        ),
        (
            lambda f: edit_json(f / "unet/config.json", lambda c: c.update(in_channels=9)),
            "models for inpainting or depth cannot be inflated",
        ),
        (
            lambda f: edit_json(f / "unet/config.json", lambda c: c.update(act_fn="gelu")),
            "act_fn='gelu' differs from Stable Diffusion",
        ),
        (
            lambda f: edit_json(
                f / "model_index.json", lambda i: i.update(text_encoder_2=["transformers", "X"])
            ),
            "has the component text_encoder_2; only",
        ),
        (
            lambda f: edit_json(f / "scheduler/scheduler_config.json", lambda c: c.clear()),
            "has no beta_schedule",
        ),
        (lambda f: (f / UNET).write_bytes(b"1234"), "is not a safetensors file"),
        (lambda f: (f / "model_index.json").unlink(), "it has no model_index.json"),
        (lambda f: shutil.rmtree(f / "vae"), "vae lacks diffusion_pytorch_model.safetensors"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_folder_with_one_thing_wrong_is_refused_by_name(folder, tmp_path, spoil, sentence):
    spoil(folder)
    with pytest.raises(UserError, match=sentence):
        inflate_stable_diffusion(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_shards_that_contradict_their_index_are_refused(image_model, tmp_path):
    sharded(image_model, tmp_path / "source")
    index = tmp_path / "source/unet/diffusion_pytorch_model.safetensors.index.json"
    original = index.read_text()
    edit_json(index, lambda i: i["weight_map"].pop("conv_out.bias"))
    with pytest.raises(UserError, match=r"holds conv_out.bias, which .* does not list"):
        inflate_stable_diffusion(tmp_path / "source", tmp_path / "out")
    index.write_text(original.replace("diffusion_pytorch_model-0", "../unet/diffusion_p-0"))
    with pytest.raises(UserError, match="is not an index of shards"):
        inflate_stable_diffusion(tmp_path / "source", tmp_path / "out")


def test_the_command_reports_every_tensor(image_folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(["inflate", str(image_folder), str(out), "--frames", "2", "--size", "12"]) == 0
    said = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.strip()}
    assert rows["component"] == ["copied", "new", "refused"]
    assert rows["unet"][0] == str(len(load_file(image_folder / UNET)))
    assert int(rows["unet"][1]) > 0
    assert "image_encoder: 4 of the safety check" in said
    assert run(["inflate", str(image_folder), str(out)]) == 2
    assert f"{out} exists" in capsys.readouterr().err
    assert run(["inflate", str(image_folder), str(tmp_path / "x"), "--size", "13"]) == 2
    assert "it must be a multiple of 2 pixels" in capsys.readouterr().err


def renamed(*pairs):
    def change(name):
        for old, new in pairs:
            name = name.replace(old, new)
        return name

    return lambda tensors: {change(name): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "variant",
    [
        lambda tensors: {
            name: x.bfloat16() if x.is_floating_point() else x for name, x in tensors.items()
        },
        renamed(("transformer.text_model.", "transformer.")),
        renamed(
            *((f".attn_1.{name}.", f".attn_1.to_{name}.") for name in "qkv"),
            (".attn_1.proj_out.", ".attn_1.to_out.0."),
        ),
        renamed((".attn_1.q.", ".attn_1.query."), (".attn_1.norm.", ".attn_1.group_norm.")),
        lambda tensors: {
            **tensors,
            "cond_stage_model.transformer.text_projection.weight": torch.zeros(5, 5),
            "embedding_manager.embedder.position_ids": torch.zeros(3),
        },
    ],
    ids=["bfloat16 with its schedule", "no text_model", "to_q", "query", "known extras"],
)
def test_single_files_of_other_programs_give_the_same_model(single, tmp_path, variant):
    path = single(lambda _: None)
    inflate_stable_diffusion(path, tmp_path / "usual", num_frames=2)
    save_file(variant(load_file(path)), path)
    inflate_stable_diffusion(path, tmp_path / "variant", num_frames=2)
    for name in ("unet", "vae"):
        file = f"{name}/diffusion_pytorch_model.safetensors"
        usual, made = (load_file(tmp_path / folder / file) for folder in ("usual", "variant"))
        assert usual.keys() == made.keys()
        # temporal layers start at random, and neither file holds them
        for key in (key for key in usual if not is_temporal_key(key)):
            torch.testing.assert_close(made[key], usual[key], atol=0, rtol=2**-7, msg=key)


def test_markers_of_the_schedule_are_applied(single, tmp_path):
    path = single(lambda t: t.update({"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}))
    inflate_stable_diffusion(path, tmp_path / "out", num_frames=2)
    config = json.loads((tmp_path / "out/scheduler/scheduler_config.json").read_text())
    assert (config["prediction_type"], config["rescale_betas_zero_snr"]) == ("v_prediction", True)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda t: t.update({"model.diffusion_model.out.2.bias": torch.full((4,), torch.inf)}),
            "conv_out.bias contains values that are not finite",
        ),
        (
            lambda t: t.update(
                {k: x.to(torch.float8_e4m3fn) for k, x in t.items() if "out.2" in k}
            ),
            "in float8_e4m3fn: 8-bit floats are too coarse",
        ),
        (
            lambda t: t.update(
                {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(32, 9, 3, 3)}
            ),
            "models for inpainting or depth cannot be inflated",
        ),
        (
            lambda t: t.update(
                {k.replace("attn_1.q", "attn_1.to_q"): x.clone() for k, x in t.items()}
            ),
            "twice, under two names",
        ),
    ],
    ids=["infinite", "8-bit floats", "inpainting", "two names"],
)
def test_the_kind_of_a_single_file_is_recognised(single, tmp_path, change, sentence):
    with pytest.raises(UserError, match=sentence):
        inflate_stable_diffusion(single(change), tmp_path / "out")


def test_a_checkpoint_is_recognised_by_its_content(tmp_path):
    tensors = {"a": torch.arange(3.0)}
    for name in ("x.ckpt", "x.SAFETENSORS", "x.pth"):
        save_file(tensors, tmp_path / name)
        assert torch.equal(read_checkpoint(tmp_path / name)["a"], tensors["a"])
    torch.save(tensors, tmp_path / "y.CKPT")
    assert torch.equal(read_checkpoint(tmp_path / "y.CKPT")["a"], tensors["a"])
    torch.save(tensors, tmp_path / "y.safetensors")
    with pytest.raises(UserError, match=r"is a PyTorch checkpoint; rename it to \.ckpt"):
        read_checkpoint(tmp_path / "y.safetensors")
