import math

import pytest
import torch

from magicvideo.data.dataset import ClipDataset
from magicvideo.errors import UserError
from magicvideo.evaluation.judge import training
from magicvideo.evaluation.judge.batches import JudgeBatch, JudgeBatchSampler, augment
from magicvideo.evaluation.judge.network import Judge
from magicvideo.evaluation.judge.self_test import check_judge
from magicvideo.evaluation.judge.training import (
    JudgeTraining,
    judge_config,
    judge_losses,
    learning_rate,
    train_judge,
)

SETTINGS = JudgeTraining(steps=6, batch_size=5, num_frames=(2, 3), seed=11)


class KilledError(Exception):
    """Stands for a kill at a step."""


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
def test_a_killed_run_that_goes_on_equals_the_unbroken_one(every_clip, tmp_path):
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


def test_it_learns_a_batch_by_heart(every_clip):
    judge = Judge(judge_config(every_clip))
    batch = JudgeBatchSampler(every_clip, judge.config.tones, (1, 1), seed=2).batch(0, 6)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3)
    before = {name: loss.item() for name, loss in judge_losses(judge, batch).items()}
    for _ in range(30):
        losses = judge_losses(judge, batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert losses["contrast"].item() < 0.2 * before["contrast"]
    assert losses["tone"].item() < 0.2 * before["tone"]


def test_a_batch_is_a_function_of_its_step(every_clip):
    tones = judge_config(every_clip).tones
    first, second = (JudgeBatchSampler(every_clip, tones, (2, 4), 5) for _ in "ab")
    first.batch(0, 3)
    one, two, other = first.batch(7, 3), second.batch(7, 3), second.batch(8, 3)
    assert one.captions == two.captions
    assert torch.equal(one.frames, two.frames)
    assert one.captions != other.captions


def test_rivals_are_near_and_true_ones_are_marked(every_clip):
    tones = judge_config(every_clip).tones
    marked = 0
    for step in range(9):
        batch = JudgeBatchSampler(every_clip, tones, (2, 2), 1).batch(step, 4)
        assert len(batch.captions) == 4 + 4 * 12
        assert not batch.also_true.diagonal().any()
        for own in range(4):
            for place in batch.also_true[own].nonzero().flatten().tolist():
                if place >= 4:  # rivals are worded canonically, so equal pairs are equal words
                    marked += 1
                    words = set(batch.captions[place].replace(",", "").split())
                    named = set(batch.captions[own].replace(",", "").split())
                    assert len(words & named) >= 2
    assert marked > 5


def test_captions_that_are_also_true_count_neither_way(judge):
    frames = torch.rand(2, 2, 3, 64, 64)
    also_true = torch.zeros(2, 4, dtype=torch.bool)
    also_true[0, 2] = also_true[1, 3] = True
    tones = torch.tensor([0, 2])

    def contrast(third, fourth):
        captions = ["bear", "boat", third, fourth]
        batch = JudgeBatch(frames=frames, captions=captions, tones=tones, also_true=also_true)
        return judge_losses(judge, batch)["contrast"].item()

    assert contrast("bear", "boat") != pytest.approx(contrast("thumbs up", "boat"), abs=1e-6)
    also_true[:, 2:] = True
    assert contrast("bear", "boat") == pytest.approx(contrast("thumbs up", "man"), abs=1e-6)


def test_the_contrast_is_the_formula_written_out(judge):
    frames = torch.rand(2, 3, 3, 64, 64)
    captions = ["bear", "boat", "waving hand"]
    batch = JudgeBatch(
        frames=frames,
        captions=captions,
        tones=torch.tensor([1, 0]),
        also_true=torch.zeros(2, 3, dtype=torch.bool),
    )
    with torch.no_grad():
        losses = judge_losses(judge, batch)
        logits, tone_logits = judge(frames, judge.tokenizer(captions))
    by_video = sum(-logits[i].softmax(dim=0)[i].log() for i in range(2)) / 2
    by_caption = sum(-logits[:, i].softmax(dim=0)[i].log() for i in range(2)) / 2
    torch.testing.assert_close(losses["contrast"], (by_video + by_caption) / 2)
    tone = -(tone_logits[0].softmax(0)[1].log() + tone_logits[1].softmax(0)[0].log()) / 2
    torch.testing.assert_close(losses["tone"], 0.5 * tone)


def test_the_rate_rises_then_falls_to_nothing():
    settings = JudgeTraining(steps=200, learning_rate=0.5)
    rates = [learning_rate(step, settings) for step in range(200)]
    assert rates[0] == pytest.approx(0.05)
    assert max(rates) == rates[9] == pytest.approx(0.5, rel=0.01)
    assert rates[199] < 1e-4
    assert sorted(rates[9:], reverse=True) == rates[9:]


def test_disturbing_keeps_the_content():
    frames = torch.zeros(40, 2, 3, 16, 16)
    frames[..., 4:13, 4:13] = 1.0
    disturbed = augment(frames, torch.Generator().manual_seed(0))
    assert disturbed.shape == frames.shape
    centre = disturbed[..., 8, 8].mean()
    edge = disturbed[..., 0, 0].mean()
    assert centre > 0.7
    assert abs(edge) < 0.05
    assert (disturbed != frames).flatten(1).any(dim=1).float().mean() > 0.9


def test_data_without_transparency_or_tones_can_be_judged(prepared, tmp_path):
    dataset = ClipDataset(prepared, ("train", "heldout"))
    judge = train_judge(dataset, SETTINGS.model_copy(update={"steps": 1}), tmp_path / "x", ignore)
    assert judge.config.tones == ("default",)
    assert "skin tone" not in check_judge(judge, prepared)["train"]


def test_a_clip_with_its_own_background_is_no_rival_of_itself(prepared):
    dataset = ClipDataset(prepared, ("train", "heldout"))
    batch = JudgeBatchSampler(dataset, ("default",), (1, 2), seed=0).batch(0, 5)
    for own, caption in enumerate(batch.captions[:5]):
        same = [place for place, other in enumerate(batch.captions) if other == caption]
        assert batch.also_true[own].nonzero().flatten().tolist() == [p for p in same if p != own]
