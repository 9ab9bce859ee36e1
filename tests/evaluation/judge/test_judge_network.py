import pytest
import torch

from magicvideo.evaluation.judge.network import Judge

B, FRAMES, HEIGHT, WIDTH = 3, 5, 40, 24


def test_features_are_unit_vectors_of_any_size_and_length(judge):
    features = judge.embed_videos(torch.rand(B, FRAMES, 3, HEIGHT, WIDTH))
    assert features.shape == (B, 64)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(B))
    captions = judge.embed_captions(["bear", "woman running, dark skin tone"])
    assert captions.shape == (2, 64)
    torch.testing.assert_close(captions.norm(dim=1), torch.ones(2))


def test_the_features_of_a_caption_do_not_depend_on_the_batch(judge):
    caption, longer = "woman running", "bear, boat, thumbs up, waving hand, dark skin tone"
    together = judge.embed_captions([caption, longer])[0]
    torch.testing.assert_close(together, judge.embed_captions([caption])[0])


def test_word_order_and_words_matter(judge):
    features = judge.embed_captions(["man running", "running man", "woman running"])
    assert torch.pdist(features).min() > 1e-3


def test_the_features_of_a_video_do_not_depend_on_the_batch(judge):
    videos = torch.rand(B, FRAMES, 3, 64, 64)
    torch.testing.assert_close(judge.embed_videos(videos)[1:2], judge.embed_videos(videos[1:2]))


def test_the_order_of_frames_matters(judge):
    videos = torch.rand(B, FRAMES, 3, 64, 64)
    forth, back = judge.embed_videos(videos), judge.embed_videos(videos.flip(1))
    assert (forth - back).abs().amax(dim=1).min() > 1e-4


def test_frames_are_selected_evenly_from_first_to_last(judge):
    few = Judge(judge.config.model_copy(update={"num_frames": 3}))
    few.load_state_dict(judge.state_dict())
    videos = torch.rand(B, 9, 3, 64, 64)
    torch.testing.assert_close(few.embed_videos(videos), few.embed_videos(videos[:, [0, 4, 8]]))


def test_forward_is_the_scaled_cosine_of_the_features(judge):
    videos, captions = torch.rand(B, FRAMES, 3, 64, 64), ["bear", "boat"]
    with torch.no_grad():
        logits, tones = judge(videos, judge.tokenizer(captions))
    cosine = judge.embed_videos(videos) @ judge.embed_captions(captions).mT
    torch.testing.assert_close(logits, cosine * judge.log_scale.exp())
    names = [judge.config.tones[index] for index in tones.argmax(dim=1).tolist()]
    assert judge.read_tones(videos) == names


@pytest.mark.parametrize("tone", ["default", "light", "medium", "dark"])
def test_the_tone_head_has_the_tones_of_the_data(judge, tone):
    assert tone in judge.config.tones
