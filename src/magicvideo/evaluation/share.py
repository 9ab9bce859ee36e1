"""The share of the work that one process of several does, as torchrun tells it."""

import os
from dataclasses import dataclass

from magicvideo.errors import UserError


@dataclass(frozen=True)
class Share:
    """Process `rank` of `count`."""

    rank: int
    count: int


def process_share() -> Share:
    """Return the share of this process, from RANK and WORLD_SIZE; all of it where neither is set.

    Raises:
        UserError: If they are no such numbers.
    """
    rank, count = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and count.isdecimal() and int(rank) < int(count)):
        raise UserError(
            f"RANK={rank} and WORLD_SIZE={count} are not a process and the number of processes; "
            "ranks run from 0 to below the number."
        )
    return Share(int(rank), int(count))
