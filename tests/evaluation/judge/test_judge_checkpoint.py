import json

import pytest
import torch

from magicvideo.atomic_io import verify_checksums, write_checksums
from magicvideo.errors import UserError
from magicvideo.evaluation.judge.network import SHIPPED, load_judge


def test_a_saved_judge_is_equal_in_half_precision(judge, judge_folder):
    again = load_judge(judge_folder)
    assert again.config == judge.config
    assert not again.training
    for name, tensor in judge.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.half().float()), name


def test_a_judge_is_named_by_its_folder_and_the_bundled_one_by_its_data(judge_folder):
    assert load_judge(judge_folder).name == "judge judge"
    assert load_judge(SHIPPED).name == "emoji judge"


def test_the_folder_has_its_checksums(judge_folder):
    verify_checksums(judge_folder)
    assert sorted(path.name for path in judge_folder.iterdir()) == [
        "SHA256SUMS",
        "config.json",
        "model.safetensors",
        "scores.json",
    ]


def test_a_folder_without_a_judge_gives_an_error(tmp_path):
    with pytest.raises(UserError, match="holds no judge; train one with"):
        load_judge(tmp_path)


def test_a_flipped_bit_is_detected(judge_folder):
    path = judge_folder / "model.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        load_judge(judge_folder)


def test_weights_that_do_not_fit_the_configuration_are_refused(judge_folder):
    path = judge_folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["words"] = config["words"][:-1]
    path.write_text(json.dumps(config), encoding="utf-8")
    write_checksums(judge_folder)
    with pytest.raises(UserError, match="not a judge of this version"):
        load_judge(judge_folder)
