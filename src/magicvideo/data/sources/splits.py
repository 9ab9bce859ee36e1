"""Splits by stable hashes: a clip's side never depends on which other clips are there."""

import hashlib
from collections import Counter
from typing import Any

from magicvideo.data.manifest import Split
from magicvideo.errors import UserError

COMBINATION_RULE = (
    "Held out: the pairs of base and skin tone (the default tone is one) whose SHA-256 is 0 modulo "
    "10, among bases that come in several tones; a pair is not held out where its base or its tone "
    "would be unseen in training. Everything else trains."
)

SPLIT_NAMES: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "validate", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("heldout", "test", "testing", "eval", "evaluation"), "heldout"),
}
"""What data sets call their splits, and what they are here."""


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


def split_named(name: Any, where: str) -> Split:  # noqa: ANN401 (whatever a list holds)
    """Return the split that a list calls by a name.

    Raises:
        UserError: If the name is unknown; `where` says in which place of the list it stands.
    """
    if not isinstance(name, str) or name not in SPLIT_NAMES:
        raise UserError(
            f"{where}: split {name!r} is none of train, validation, test and heldout; mend it."
        )
    return SPLIT_NAMES[name]


def check_share(holdout: float) -> None:
    """Check a share of clips to hold out.

    Raises:
        UserError: If it is not from 0 to below 1.
    """
    if not 0 <= holdout < 1:
        raise UserError(f"holdout {holdout} is not a share; give a number from 0 to below 1.")


def share_rule(holdout: float, what: str) -> str:
    """Return how the sentence on held-out clips goes on: "", or ", and 0.1 of the other ..."."""
    return f", and {holdout:g} of {what} by the SHA-256 of their id" if holdout else ""


def split_by_hash(clip_id: str, holdout: float) -> Split:
    """Put a share `holdout` of all possible ids into the held-out split."""
    return "heldout" if _hash(clip_id) % 10_000 < holdout * 10_000 else "train"


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
