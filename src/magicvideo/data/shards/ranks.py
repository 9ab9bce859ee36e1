"""Which of several processes this is, as torchrun and accelerate say it."""

from collections.abc import Mapping
from dataclasses import dataclass

from magicvideo.errors import UserError


@dataclass(frozen=True)
class Rank:
    """Number `number` of `world` processes, and the `local`th of its machine."""

    number: int = 0
    world: int = 1
    local: int = 0


def read_rank(environment: Mapping[str, str]) -> Rank:
    """Return what RANK, WORLD_SIZE and LOCAL_RANK say; without them there is one process.

    Raises:
        UserError: If only one of the first two is there, or they are not numbers that fit.
    """
    found = {name: environment.get(name) for name in ("RANK", "WORLD_SIZE")}
    if not any(found.values()):
        return Rank()
    try:
        number, world = (int(value or "") for value in found.values())
        local = int(environment.get("LOCAL_RANK") or 0)
        if not 0 <= number < world or local < 0:
            raise ValueError
    except ValueError:
        said = ", ".join(f"{name}={value}" for name, value in found.items())
        raise UserError(
            f"{said} do not name one of several processes; let torchrun set them, or unset both."
        ) from None
    return Rank(number, world, local)
