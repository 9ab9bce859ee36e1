import math

import numpy as np
import pytest
import torch

from magicvideo.data.dataset import ClipDataset
from magicvideo.errors import UserError
from magicvideo.evaluation.judge import training
from magicvideo.evaluation.judge.batches import (
    NOT_SHOWN,
    JudgeBatch,
    JudgeBatchSampler,
    blur,
    colour_matrix,
    shift_colours,
    warp,
)
from magicvideo.evaluation.judge.network import Judge
from magicvideo.evaluation.judge.training import (
    JudgeTraining,
    build_optimizer,
    check_judge,
    judge_config,
    judge_losses,
    lr_scale,
    train_judge,
)
from magicvideo.evaluation.subjects import Subjects

SETTINGS = JudgeTraining(steps=6, batch_size=5, seed=11)


class KilledError(Exception):
    """Simulates a kill at a step."""


def kill_at(last):
    def report(step, losses):
        assert all(math.isfinite(loss) for loss in losses.values())
        if step == last:
            raise KilledError

    return report


def ignore(step, losses):
    pass


def equal(first: Judge, second: Judge) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(left, right) for left, right in pairs)


@pytest.fixture
def save_every_step(monkeypatch):
    monkeypatch.setattr(training, "_SECONDS_BETWEEN_STATES", -1.0)


@pytest.mark.usefixtures("save_every_step")
def test_a_resumed_run_equals_an_uninterrupted_run(every_clip, tmp_path):
    unbroken = train_judge(every_clip, SETTINGS, tmp_path / "one", ignore)
    with pytest.raises(KilledError):
        train_judge(every_clip, SETTINGS, tmp_path / "two", kill_at(4))
    seen = []
    resumed = train_judge(every_clip, SETTINGS, tmp_path / "two", lambda step, _: seen.append(step))
    assert seen == [4, 5, 6]  # the state of step 3 was the last to be whole
    assert equal(unbroken, resumed)


@pytest.mark.usefixtures("save_every_step")
def test_a_state_of_other_settings_is_refused(every_clip, tmp_path):
    with pytest.raises(KilledError):
        train_judge(every_clip, SETTINGS, tmp_path / "state", kill_at(2))
    other = SETTINGS.model_copy(update={"seed": 12})
    with pytest.raises(UserError, match="state of a run with other settings or data"):
        train_judge(every_clip, other, tmp_path / "state", ignore)


@pytest.mark.usefixtures("save_every_step")
def test_a_damaged_state_is_refused(every_clip, tmp_path):
    with pytest.raises(KilledError):
        train_judge(every_clip, SETTINGS, tmp_path / "state", kill_at(2))
    (tmp_path / "state" / "state.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="damaged"):
        train_judge(every_clip, SETTINGS, tmp_path / "state", ignore)


def test_another_seed_gives_another_judge(every_clip, tmp_path):
    brief = SETTINGS.model_copy(update={"steps": 1})
    first = train_judge(every_clip, brief, tmp_path / "one", ignore)
    other = brief.model_copy(update={"seed": 12})
    assert not equal(first, train_judge(every_clip, other, tmp_path / "two", ignore))


def sampler_of(dataset, seed=2):
    return JudgeBatchSampler(dataset, Subjects(dataset), judge_config(dataset).tones, seed)


def test_it_overfits_a_batch(every_clip):
    torch.manual_seed(0)
    judge = Judge(judge_config(every_clip))
    batch = sampler_of(every_clip).batch(0, 6)
    optimizer = build_optimizer(judge, SETTINGS)
    before = {name: loss.item() for name, loss in judge_losses(judge, batch).items()}
    for _ in range(25):
        losses = judge_losses(judge, batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert losses["contrast"].item() < 0.3 * before["contrast"]


def test_a_batch_depends_only_on_its_step(every_clip):
    first, second = sampler_of(every_clip, 5), sampler_of(every_clip, 5)
    first.batch(0, 3)
    one, two, other = first.batch(7, 3), second.batch(7, 3), second.batch(8, 3)
    assert one.captions == two.captions
    assert torch.equal(one.frames, two.frames)
    assert one.captions != other.captions


def test_true_and_indistinguishable_captions_are_masked(every_clip):
    sampler, undecided = sampler_of(every_clip), 0
    for step in range(12):
        batch = sampler.batch(step, 4)
        assert not batch.undecided.diagonal().any()
        for own in range(4):
            name = batch.captions[own].split(",")[0].removeprefix("a ").removeprefix("an ")
            for place in batch.undecided[own].nonzero().flatten().tolist():
                undecided += 1
                assert name in batch.captions[place]  # no two subjects of these clips look alike
                assert batch.on_background[own, place]
            tone = batch.tones[own].item()
            if tone != NOT_SHOWN and sampler.tones[tone] != "default":
                assert f"{sampler.tones[tone]} skin tone" in batch.captions[own]
    assert undecided > 5


def test_a_colour_shifted_figure_has_no_tone_and_all_kinds_occur(every_clip):
    sampler = sampler_of(every_clip)
    batches = [sampler.batch(step, 8) for step in range(6)]
    tones = torch.cat([batch.tones for batch in batches])
    recognisable = torch.cat([batch.recognisable for batch in batches])
    assert 0.2 < (tones != NOT_SHOWN).float().mean() < 0.6
    assert 0.02 < (~recognisable).float().mean() < 0.35
    assert (tones[~recognisable] == NOT_SHOWN).all()


def batch_of(captions, **changes):
    count = len(captions)
    values = {
        "frames": torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
        "captions": captions,
        "tones": torch.tensor([1, 0]),
        "recognisable": torch.ones(2, dtype=torch.bool),
        "undecided": torch.zeros(2, count, dtype=torch.bool),
        "on_background": torch.ones(2, count, dtype=torch.bool),
    }
    return JudgeBatch(**(values | changes))


def test_masked_captions_do_not_count(judge):
    undecided = torch.zeros(2, 4, dtype=torch.bool)
    undecided[:, 2:] = True

    def contrast(third, fourth, **changes):
        batch = batch_of(["bear", "boat", third, fourth], **changes)
        return judge_losses(judge, batch)["contrast"].item()

    assert contrast("bear", "boat") != pytest.approx(contrast("thumbs up", "boat"), abs=1e-6)
    first = contrast("bear", "boat", undecided=undecided)
    assert first == pytest.approx(contrast("thumbs up", "man", undecided=undecided), abs=1e-6)


def test_the_losses_equal_their_formulas(judge):
    captions = ["bear", "boat", "waving hand"]
    batch = batch_of(captions)
    with torch.no_grad():
        losses = judge_losses(judge, batch)
        logits, tone_logits = judge(batch.frames, judge.tokenizer(captions))
    by_video = sum(-logits[i].softmax(dim=0)[i].log() for i in range(2)) / 2
    by_caption = sum(-logits[:, i].softmax(dim=0)[i].log() for i in range(2)) / 2
    torch.testing.assert_close(losses["contrast"], (by_video + by_caption) / 2)
    tone = -(tone_logits[0].softmax(0)[1].log() + tone_logits[1].softmax(0)[0].log()) / 2
    torch.testing.assert_close(losses["tone"], 0.5 * tone)
    assert "flat" not in losses


def test_an_unrecognisable_video_must_match_all_captions_of_its_background_equally(judge):
    captions = ["bear", "boat", "waving hand", "thumbs up"]
    on_background = torch.tensor([[True] * 4, [True, True, False, True]])
    recognisable = torch.tensor([True, False])
    batch = batch_of(
        captions,
        recognisable=recognisable,
        on_background=on_background,
        tones=torch.tensor([0, NOT_SHOWN]),
    )
    with torch.no_grad():
        losses = judge_losses(judge, batch)
        logits, _ = judge(batch.frames, judge.tokenizer(captions))
    choice = logits[1, [0, 1, 3]].softmax(dim=0)
    # the divergence of the uniform choice among three from the video's own
    divergence = -(choice.log().mean()) - math.log(3)
    torch.testing.assert_close(losses["flat"], 0.5 * divergence)


def test_the_learning_rate_rises_then_falls():
    rates = [lr_scale(step, 200) for step in range(200)]
    assert rates[0] == pytest.approx(1 / 30)
    assert rates[29:102] == [1.0] * 73
    assert sorted(rates[102:], reverse=True) == rates[102:]
    assert rates[199] == pytest.approx(0.03)


def test_grey_is_unchanged_by_every_colour_shift_except_a_tint():
    grey = torch.full((3,), 0.5)
    kept = 0
    for seed in range(40):
        matrix = colour_matrix(np.random.default_rng(seed))
        assert matrix.shape == (3, 3)
        kept += int(torch.allclose(matrix @ grey, grey, atol=1e-6))
    assert 20 < kept < 40


def test_colour_shifts_keep_the_outline_and_change_the_colour():
    figure = torch.zeros(2, 4, 16, 16)
    figure[:, :, 4:9, 5:11] = torch.tensor([0.9, 0.5, 0.1, 1.0])[:, None, None]
    for seed in range(10):
        shifted = shift_colours(figure, np.random.default_rng(seed))
        assert torch.equal(shifted[:, 3], figure[:, 3])
        assert not torch.allclose(shifted[:, :3], figure[:, :3], atol=0.05)
        assert (shifted[:, :3, 0, 0] == 0).all()


def test_warping_moves_all_channels_equally():
    figure = torch.zeros(3, 4, 20, 24)
    figure[:, :, 6:14, 8:16] = 1.0
    moved = 0
    for seed in range(10):
        warped = warp(figure, np.random.default_rng(seed))
        assert warped.shape == figure.shape
        torch.testing.assert_close(warped[:, :1].expand_as(warped), warped)
        assert 0.4 < warped.mean() / figure.mean() < 2.2
        moved += int(not torch.equal(warped, figure))
    assert 5 <= moved < 10


def test_blur_keeps_the_mean_of_a_constant_and_spreads_a_point():
    assert blur(torch.full((2, 3, 9, 11), 0.3), 2.0).allclose(torch.tensor(0.3))
    point = torch.zeros(1, 1, 41, 41)
    point[..., 20, 20] = 1
    blurred = blur(point, 3.0)
    offsets = torch.arange(41.0) - 20
    assert blurred.sum().item() == pytest.approx(1, abs=1e-5)
    variance = (blurred[0, 0].sum(dim=0) * offsets**2).sum().item()
    assert variance == pytest.approx(9, rel=0.1)


def test_a_judge_can_be_trained_without_transparency_or_tones(prepared, tmp_path):
    dataset = ClipDataset(prepared, ("train", "heldout"), captioned=True)
    judge = train_judge(dataset, SETTINGS.model_copy(update={"steps": 1}), tmp_path / "x", ignore)
    assert judge.config.tones == ("default",)
    assert "skin tone" not in check_judge(judge, prepared)


def test_the_self_test_scores_every_view_of_the_same_clips(judge, emoji):
    scores = check_judge(judge, emoji)
    views = ["as drawn", "in grey", "channels rolled", "blurred over 17 of 64 pixels"]
    names = [f"own caption first of 6, {view}" for view in (*views, "as a flat silhouette")]
    assert list(scores) == [*names, "skin tone"]
    assert [scores[name].count for name in names] == [6] * 5
    assert scores["skin tone"].count > 8
