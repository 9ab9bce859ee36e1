"""What a benchmark asks of a model: prompts with their seeds, drawn once and for all."""

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np

from magicvideo.errors import UserError
from magicvideo.evaluation.benchmark.protocol import Benchmark, Prompts
from magicvideo.evaluation.benchmark.reference import ReferenceClip

_OF_CLASSES = ("class_mix", "even_classes")


@dataclass(frozen=True)
class BenchmarkPrompt:
    """One video that is asked for."""

    prompt: str
    seed: int


def sample_prompts(benchmark: Benchmark, clips: list[ReferenceClip]) -> list[BenchmarkPrompt]:
    """Return the prompts of a benchmark in an order whose first part is a fair sample of all.

    Args:
        benchmark: Says which.
        clips: Of the split that the prompts come from, sorted by id.

    Returns:
        As many as the benchmark wants, or fewer where the clips have no more. The seed of prompt k
        is k.

    Raises:
        UserError: If classes cannot be taken equally often.
    """
    rng = np.random.default_rng(benchmark.seed)
    wanted = benchmark.prompts
    if wanted.kind == "all_captions":
        texts = [caption for clip in clips for caption in clip.captions]
        texts = [texts[place] for place in rng.permutation(len(texts))]
    elif wanted.kind == "one_caption":
        chosen = [clips[place] for place in rng.permutation(len(clips))[: wanted.count]]
        texts = [clip.captions[rng.integers(len(clip.captions))] for clip in chosen]
    else:
        names = _classes(wanted, clips)
        texts = [_sentence(wanted, names[place]) for place in rng.permutation(len(names))]
    return [BenchmarkPrompt(text, seed) for seed, text in enumerate(texts)]


def caption_of(benchmark: Benchmark, clip: ReferenceClip) -> str:
    """Return what a real clip is compared with: its caption, or its class in words of a prompt."""
    wanted = benchmark.prompts
    if wanted.kind in _OF_CLASSES:
        return _sentence(wanted, clip.captions[0])
    return clip.captions[0]


def prompts_hash(texts: list[str]) -> str:
    """Return the SHA-256 of a set of prompts, in whatever order."""
    return hashlib.sha256("\n".join(sorted(texts)).encode()).hexdigest()


def class_counts(
    benchmark: Benchmark, clips: list[ReferenceClip], texts: list[str]
) -> dict[str, int]:
    """Return how many of some prompts ask for each class; prompts of no class are left out.

    Args:
        benchmark: Says how a class becomes a prompt. Where prompts are captions, none has a class.
        clips: Of all classes.
        texts: The prompts.
    """
    if benchmark.prompts.kind not in _OF_CLASSES:
        return {}
    names = {caption_of(benchmark, clip): clip.captions[0] for clip in clips}
    return dict(sorted(Counter(names[text] for text in texts if text in names).items()))


def _classes(wanted: Prompts, clips: list[ReferenceClip]) -> list[str]:
    """Return the name of a class for each prompt."""
    sizes = Counter(clip.captions[0] for clip in clips)
    if wanted.kind == "class_mix":
        counts = _apportion(sizes, wanted.count)
    else:
        each, rest = divmod(wanted.count, len(sizes))
        if rest:
            raise UserError(
                f"{wanted.count} prompts cannot be shared equally by the {len(sizes)} classes of "
                "this data set; give the whole data set, or ask for a multiple."
            )
        counts = dict.fromkeys(sizes, each)
    return [name for name in sorted(counts) for _ in range(counts[name])]


def _apportion(sizes: Counter[str], count: int) -> dict[str, int]:
    """Share `count` in proportion to sizes; what rounding leaves goes to the largest remainders."""
    total = sizes.total()
    shares = {name: divmod(size * count, total) for name, size in sizes.items()}
    counts = {name: whole for name, (whole, _) in shares.items()}
    by_rest = sorted(shares, key=lambda name: (-shares[name][1], name))
    for name in by_rest[: count - sum(counts.values())]:
        counts[name] += 1
    return counts


def _sentence(wanted: Prompts, name: str) -> str:
    return wanted.sentences.get(name) or wanted.wording.format(name=name)
