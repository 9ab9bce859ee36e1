"""Splits by stable hashes: a clip's side never depends on which other clips are there."""

import hashlib
from collections import Counter

from magicvideo.data.manifest import Split

COMBINATION_RULE = (
    "Held out: the pairs of base and skin tone (the default tone is one) whose SHA-256 is 0 modulo "
    "10, among bases that come in several tones; a pair is not held out where its base or its tone "
    "would be unseen in training. Everything else trains."
)


def heldout_combinations(pairs: list[tuple[str, str]]) -> set[tuple[str, str]]:
    """Choose about one in ten of the pairs of base and tone, each part of which stays in training.

    Args:
        pairs: Every pair that exists, each once, of bases that come in several tones.
    """
    heldout: set[tuple[str, str]] = set()
    bases, tones = Counter(base for base, _ in pairs), Counter(tone for _, tone in pairs)
    for base, tone in sorted(pairs):
        if _hash(f"{base}|{tone}") % 10 == 0 and bases[base] > 1 and tones[tone] > 1:
            heldout.add((base, tone))
            bases[base] -= 1
            tones[tone] -= 1
    return heldout


def split_by_hash(clip_id: str, holdout: float) -> Split:
    """Put a share `holdout` of all possible ids into the held-out split."""
    return "heldout" if _hash(clip_id) % 10_000 < holdout * 10_000 else "train"


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
