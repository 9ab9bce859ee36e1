import shutil
from dataclasses import replace

import pytest
import torch
from plain_request import PLAIN

from magicvideo.errors import UserError
from magicvideo.evaluation.benchmark.prompts import find_external_videos, vbench_name
from magicvideo.pipelines.video import write_video


def test_prompts_are_read_from_text_files_metadata_or_names(shapes, tmp_path):
    video = shapes / "clip000.mp4"
    shutil.copy(video, tmp_path / "a red-hot stone-12.mp4")
    shutil.copy(video, tmp_path / "x-1.mp4")
    (tmp_path / "x-1.txt").write_text("a blue\nbird ", encoding="utf-8")
    assert [made.prompt for made in find_external_videos(tmp_path)] == [
        "a red-hot stone",
        "a blue bird",
    ]
    assert vbench_name("a red-hot stone", 12) == "a red-hot stone-12"
    shutil.copy(video, tmp_path / "nameless.mp4")
    with pytest.raises(UserError, match=r"nameless\.mp4 does not tell its prompt"):
        find_external_videos(tmp_path)


def test_videos_of_magicvideo_contain_their_prompt(tmp_path):
    request = replace(
        PLAIN,
        prompt="a cat on a mat",
        seed=7,
        num_frames=3,
        fps=8.0,
        num_inference_steps=2,
        guidance_scale=1.0,
        output_scale=1,
    )
    write_video(torch.zeros(3, 3, 16, 20), request, tmp_path / "cat-7.mp4")
    assert [made.prompt for made in find_external_videos(tmp_path)] == ["a cat on a mat"]


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no video"):
        find_external_videos(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        find_external_videos(tmp_path / "nowhere")
