import pytest
import torch
from loras import (
    ALPHA,
    CONVOLUTIONS,
    LAYOUTS,
    RANK,
    SPATIAL,
    TEXT,
    in_kohya_names,
    in_peft_names,
    random_updates,
)
from networks import make_unet
from transformers import CLIPTextConfig, CLIPTextModel

from magicvideo.errors import UserError
from magicvideo.models.lora import (
    LoraWeights,
    convert_lora_state_dict,
    merge_lora,
    to_peft_state_dict,
)

TO_Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
FLAT_TO_Q = f"lora_unet_{TO_Q.replace('.', '_')}"


@pytest.fixture(scope="module")
def networks():
    text = CLIPTextConfig(
        hidden_size=6,
        intermediate_size=9,
        num_attention_heads=2,
        num_hidden_layers=2,
        vocab_size=20,
        max_position_embeddings=11,
        bos_token_id=18,
        eos_token_id=19,
    )
    return {"unet": make_unet(), "text_encoder": CLIPTextModel(text)}


@pytest.fixture(scope="module")
def weights(networks):
    return {name: network.state_dict() for name, network in networks.items()}


def update_of(shape, down, up, alpha=ALPHA):
    update = LoraWeights(torch.randn(*down), torch.randn(*up), alpha)
    weight = torch.randn(*shape)
    return weight, update


@pytest.mark.parametrize(
    ("shape", "down", "up", "product"),
    [
        ((7, 4), (RANK, 4), (7, RANK), "or,ri->oi"),
        ((7, 4, 5, 3), (RANK, 4, 5, 3), (7, RANK, 1, 1), "orxy,rihw->oihw"),
        ((7, 4, 1, 1), (RANK, 4), (7, RANK), "or,ri->oi"),
        ((7, 4), (RANK, 4, 1, 1), (7, RANK, 1, 1), "orxy,rihw->oi"),
    ],
)
def test_an_update_is_scale_times_alpha_over_rank_times_the_product(shape, down, up, product):
    weight, update = update_of(shape, down, up)
    assert update.fits(shape)
    changed = weight.clone()
    merge_lora({"w": changed}, {"w": update}, 0.7)
    expected = 0.7 * ALPHA / RANK * torch.einsum(product, update.up, update.down)
    torch.testing.assert_close(changed, weight + expected.reshape(shape))
    half = weight.half()
    merge_lora({"w": half}, {"w": update}, 0.7)
    assert torch.equal(half, (weight.half().float() + update.delta(shape).mul_(0.7)).half())


@pytest.mark.parametrize(
    ("shape", "down", "up"),
    [
        ((7, 4), (RANK, 5), (7, RANK)),
        ((7, 4), (RANK, 4), (8, RANK)),
        ((7, 4), (RANK, 4), (7, RANK + 1)),
        ((7, 4, 5, 3), (RANK, 4, 3, 5), (7, RANK, 1, 1)),
        ((7, 4, 5, 3), (RANK, 60), (7, RANK)),
        ((7, 4), (RANK,), (7, RANK)),
    ],
)
def test_other_shapes_do_not_fit(shape, down, up):
    assert not update_of(shape, down, up)[1].fits(shape)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_addresses_the_same_layers(layout, networks, weights):
    expected = {
        "unet": random_updates(networks["unet"], (*SPATIAL, *CONVOLUTIONS)),
        "text_encoder": random_updates(networks["text_encoder"], TEXT),
    }
    tensors = {}
    for component, updates in expected.items():
        tensors.update(LAYOUTS[layout](component, updates))
    alphas = {} if layout == "kohya" else {"unet": ALPHA, "text_encoder": ALPHA}
    found = convert_lora_state_dict(tensors, weights, alphas, "x.safetensors")
    for component, updates in expected.items():
        assert found[component].keys() == updates.keys()
        for name, update in updates.items():
            read = found[component][name]
            assert torch.equal(read.down, update.down), name
            assert torch.equal(read.up, update.up), name
            assert read.alpha == ALPHA, name


def test_names_without_a_prefix_belong_to_the_unet_and_alpha_defaults_to_the_rank(
    networks, weights
):
    updates = random_updates(networks["unet"], ["attn1.to_q"])
    bare = {name[len("unet.") :]: x for name, x in in_peft_names("unet", updates).items()}
    found = convert_lora_state_dict(bare, weights, {}, "x")["unet"]
    assert found.keys() == updates.keys()
    assert {update.alpha for update in found.values()} == {float(RANK)}


def test_what_is_written_is_read_as_the_same_update(networks, weights):
    updates = random_updates(networks["unet"], [*SPATIAL, "temporal.to_qkv", "conv2"])
    found = convert_lora_state_dict(to_peft_state_dict(updates, "unet"), weights, {}, "x")["unet"]
    for name, update in updates.items():
        shape = weights["unet"][name].shape
        torch.testing.assert_close(found[name].delta(shape), update.delta(shape))


def changed(**entries):
    """A correct file of one layer, with some entries changed; None leaves one out."""
    tensors = {
        f"{FLAT_TO_Q}.lora_down.weight": torch.ones(RANK, 12),
        f"{FLAT_TO_Q}.lora_up.weight": torch.ones(12, RANK),
        f"{FLAT_TO_Q}.alpha": torch.tensor(2.0),
    }
    for ending, value in entries.items():
        key = f"{FLAT_TO_Q}.{ending.replace('__', '.')}"
        if value is None:
            del tensors[key]
        else:
            tensors[key] = value
    return tensors


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({}, "x is empty"),
        (changed(hada_w1_a=torch.ones(2)), "it is LoHa, which is not supported"),
        (changed(lora_mid__weight=torch.ones(2)), "it is a LoRA in Tucker form"),
        (changed(dora_scale=torch.ones(2)), "it is DoRA"),
        (changed(colour=torch.ones(2)), r"contains the unknown tensor .*to_q\.colour"),
        (changed(lora_up__weight=None), r"and not the matrix up that goes with it"),
        (changed(lora_up__weight=torch.ones(12, 4)), r"\[12, 4\], and the layer .* another base"),
        (changed(lora_down__weight=torch.ones(RANK, 16)), r"\[3, 16\] and .*\[12, 12\]"),
        (changed(lora_down__weight=torch.ones(0, 12)), "has rank 0"),
        (changed(lora_up__weight=torch.full((12, RANK), torch.nan)), "are not finite"),
        (changed(lora_up__weight=torch.ones(12, RANK).int()), "has dtype torch.int32"),
        (changed(alpha=torch.tensor(torch.inf)), "alpha contains values that are not finite"),
        (
            {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.ones(RANK, 12)},
            "has no such layer; the LoRA was made for another base model",
        ),
        ({f"unet.{TO_Q}.diff": torch.ones(12, 12)}, "a change of whole tensors"),
        (changed(alpha=torch.ones(2)), r"alpha is not a single number"),
        ({"lora_unet_x_to_q.lora_up.weight": torch.ones(2)}, "the unet of this model has no such"),
        ({"lora_te2_x.lora_up.weight": torch.ones(2)}, "it is of Stable Diffusion XL"),
        (
            {**changed(), f"unet.{TO_Q}.lora_A.weight": torch.ones(RANK, 12)},
            "has two tensors for mid_block",
        ),
    ],
)
def test_a_lora_for_another_model_is_refused_by_name(tensors, sentence, weights):
    with pytest.raises(UserError, match=sentence) as caught:
        convert_lora_state_dict(tensors, weights, {}, "x")
    assert str(caught.value).endswith(".")


def test_a_lora_for_the_text_encoder_needs_a_text_encoder(networks, weights):
    tensors = in_kohya_names("text_encoder", random_updates(networks["text_encoder"], ["mlp.fc1"]))
    with pytest.raises(UserError, match="the text_encoder of this model has no such layer"):
        convert_lora_state_dict(tensors, {"unet": weights["unet"]}, {}, "x")


@pytest.mark.parametrize(
    "tensors",
    [
        changed(alpha=torch.tensor(2)),
        changed(alpha=torch.tensor(2, dtype=torch.uint8)),
        {name: x.to(torch.float8_e4m3fn) for name, x in changed().items()},
        {
            f"diffusion_model.{TO_Q}.lora_{side}.default.weight": x
            for side, x in (("A", torch.ones(RANK, 12)), ("B", torch.ones(12, RANK) * 2 / RANK))
        },
    ],
    ids=["whole alpha", "byte alpha", "8-bit floats", "ComfyUI's prefix and an adapter's name"],
)
def test_variants_of_other_programs_are_read_equally(tensors, weights):
    found = convert_lora_state_dict(tensors, weights, {}, "x")["unet"][f"{TO_Q}.weight"]
    # up @ down of ones is the rank, times alpha / rank
    torch.testing.assert_close(found.delta((12, 12)), torch.full((12, 12), 2.0))


def test_a_merge_with_a_non_finite_result_changes_nothing():
    weights = {"a": torch.ones(3, 2), "b": torch.ones(3, 2)}
    good, bad = (LoraWeights(torch.ones(1, 2), torch.ones(3, 1), alpha) for alpha in (1.0, 1e38))
    with pytest.raises(UserError, match="scale 10 makes b infinite or not a number"):
        merge_lora(weights, {"a": good, "b": bad}, 10.0)
    assert all(torch.equal(weight, torch.ones(3, 2)) for weight in weights.values())
