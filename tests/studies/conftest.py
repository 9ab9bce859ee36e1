"""Fixtures that tests of evaluation and studies share."""

from toned_clips import emoji, every_clip, judge, judge_folder

__all__ = ["emoji", "every_clip", "judge", "judge_folder"]
