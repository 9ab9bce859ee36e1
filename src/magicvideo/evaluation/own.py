"""A protocol for any prepared clips, however few: its counts follow from the data and the model."""

from pathlib import Path

import numpy as np

from magicvideo.data.dataset import ClipDataset
from magicvideo.data.manifest import Split, read_manifest
from magicvideo.errors import UserError
from magicvideo.evaluation.judge.network import Judge, split_words
from magicvideo.evaluation.prompt_sets import sample_prompts
from magicvideo.evaluation.protocol import AutoencoderSet, PromptSet, Protocol
from magicvideo.evaluation.subjects import Subjects
from magicvideo.pipelines.text_to_video import MagicVideoPipeline

NAME = "own"
_LARGEST_POOL = 100
_MOST_REFERENCE_CLIPS = 1000
_FEWEST_REFERENCE_CLIPS = 20  # for a distance that says anything
_KNOWN_WORDS = 0.9
_SPLITS: tuple[Split, ...] = ("heldout", "validation", "train")
_SETS = {
    "heldout": "held-out captions",
    "validation": "captions of the validation split",
    "train": "training captions",
}


def own_protocol(
    data: Path, pipeline: MagicVideoPipeline, judge: Judge, *, prompts: int
) -> tuple[Protocol, list[str]]:
    """Return the protocol that fits some data and a model, and what it has to leave out.

    Args:
        data: Folder of prepared clips.
        pipeline: The model, whose own settings make the videos.
        judge: A matcher of videos and captions. Where it does not know the captions' words, nothing
            is asked of it but features.
        prompts: At most so many captions of each split.

    Raises:
        UserError: If no clip has a caption.
    """
    counts = {split: _count(data, split) for split in _SPLITS}
    splits = [split for split in _SPLITS if counts[split]]
    if not splits:
        raise UserError(
            f"No clip of {data} has a caption, and videos are made from captions; add captions and "
            "run `magicvideo data prepare` again."
        )
    whole = ClipDataset(data, tuple(splits), captioned=True)
    capabilities = pipeline.capabilities
    num_frames = max(2, capabilities.max_frames)
    missing = []
    pool_size = _pool_size(Subjects(whole))
    known = _known_words(judge, whole)
    if pool_size < 2:
        missing.append("All clips show the same, so captions cannot be told apart.")
    elif known < _KNOWN_WORDS:
        missing.append(
            f"The judge knows {known:.0%} of the captions' words, so captions are not scored; "
            "train one on your clips with `magicvideo evaluate judge` and name it with --judge."
        )
        pool_size = 1
    sets = tuple(
        PromptSet(name=_SETS[split], split=split, prompts=min(prompts, counts[split]))
        for split in splits
    )
    reference = len(whole) - max(one.prompts for one in sets)
    if reference < _FEWEST_REFERENCE_CLIPS:
        missing.append(
            f"The Frechet distance needs {_FEWEST_REFERENCE_CLIPS} clips besides those of the "
            f"prompts, and there are {reference}; prepare more clips, or take fewer --prompts."
        )
        reference = 0
    return (
        Protocol(
            name=NAME,
            about="Key frames on the captions of prepared clips, next to these clips themselves.",
            seed=1,
            num_frames=num_frames,
            stride=_stride(whole, num_frames),
            scheduler=capabilities.default("scheduler"),
            num_inference_steps=capabilities.default("num_inference_steps"),
            guidance_scale=capabilities.default("guidance_scale"),
            guidance_stop=capabilities.default("guidance_stop"),
            pool_size=pool_size,
            reference_clips=min(reference, _MOST_REFERENCE_CLIPS),
            covariance_divisor="n-1",
            sets=sets,
            autoencoder=AutoencoderSet(split=splits[0], clips=min(prompts, counts[splits[0]])),
        ),
        missing,
    )


def _count(data: Path, split: Split) -> int:
    return sum(clip.split == split and clip.has_caption for clip in read_manifest(data))


def _pool_size(subjects: Subjects) -> int:
    """Return the size of the largest pools that every subject can have."""
    different = int((~subjects.alike).sum(dim=1).min())
    return min(_LARGEST_POOL, different + 1)


def _known_words(judge: Judge, dataset: ClipDataset) -> float:
    """Return the share of the words in the captions that the judge knows."""
    captions = [prompt.caption for prompt in sample_prompts(dataset, len(dataset), seed=0)]
    words = [word for caption in captions for word in split_words(caption)]
    known = set(judge.config.words)
    return float(np.mean([word in known for word in words])) if words else 0.0


def _stride(dataset: ClipDataset, num_frames: int) -> int:
    """Return the largest stride, 4 at most, at which half of the clips have all frames."""
    middle = int(np.median([clip.frames for clip in dataset.clips]))
    return max(1, min(4, (middle - 1) // (num_frames - 1)))
