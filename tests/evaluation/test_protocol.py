import pytest
import yaml

from magicvideo.errors import UserError
from magicvideo.evaluation.protocol import TargetRange, read_protocol


@pytest.fixture
def values():
    return read_protocol("emoji-heldout").model_dump(mode="json")


def write(values, folder):
    path = folder / "protocol.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(path)


def test_a_protocol_is_unchanged_by_writing_and_reading(values, tmp_path):
    assert read_protocol(write(values, tmp_path)) == read_protocol("emoji-heldout")


def test_the_shipped_protocol_holds_the_targets_of_this_project():
    protocol = read_protocol("emoji-heldout")
    train, heldout, natural, finished = protocol.sets
    assert [found.split for found in protocol.sets] == ["train", "heldout", "train", "heldout"]
    assert train.targets["caption_first_same_background"] == TargetRange(at_least=0.7)
    assert heldout.targets["caption_first_same_background"] == TargetRange(at_least=0.7)
    assert heldout.targets["skin_tone"] == TargetRange(at_least=0.92)
    assert heldout.targets["temporal_power_low"] == TargetRange(at_least=0.7, at_most=1.4)
    assert (natural.wording, natural.prompts) == ("natural", train.prompts)
    assert finished.stages == ("keyframes", "interpolation")
    assert finished.targets["temporal_change"] == TargetRange(at_least=0.8, at_most=1.2)
    assert protocol.autoencoder.targets["psnr"] == TargetRange(at_least=30)
    assert protocol.pool_size == 100


def test_bounds_are_included():
    target = TargetRange(at_least=0.5, at_most=1.5)
    assert [target.is_met(value) for value in (0.4, 0.5, 1.5, 1.6)] == [False, True, True, False]
    assert TargetRange().is_met(7.0)


def test_an_unknown_name_is_answered_with_those_that_are_known():
    with pytest.raises(UserError, match=r"'emoji' is neither a protocol \(emoji-heldout, .*\) nor"):
        read_protocol("emoji")


@pytest.mark.parametrize(
    ("key", "value", "where"),
    [
        ("scheduler", "eulr", "scheduler"),
        ("num_inference_steps", 5000, "num_inference_steps"),
        ("pool_size", 0, "pool_size"),
        ("resamples", 1, "resamples"),
        ("speed", 3, "speed"),
    ],
)
def test_a_wrong_value_is_named(values, tmp_path, key, value, where):
    with pytest.raises(UserError, match=f"{where} is wrong"):
        read_protocol(write(values | {key: value}, tmp_path))


def test_a_file_that_is_not_yaml_is_refused(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("name: [", encoding="utf-8")
    with pytest.raises(UserError, match="is not YAML"):
        read_protocol(str(path))
