"""How much of a video is in the decoder and in the upscaler at once: what bounds their memory."""

from dataclasses import asdict, dataclass

from magicvideo.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ChunkSizes:
    """What they see at a time. To rounding, a video does not depend on it.

    Attributes:
        decoder_frames: Frames that the decoder sees.
        upscaler_frames: Frames that the upscaler sees.
        upscaler_tile: Longest side that it sees of them, in pixels of the small frames.

    Raises:
        UserError: If one is not 1 or more.
    """

    decoder_frames: int = 16
    upscaler_frames: int = 4
    upscaler_tile: int = 256

    def __post_init__(self) -> None:
        """Refuse what holds nothing."""
        for name, value in asdict(self).items():
            if value < 1:
                raise UserError(f"{cli_flag(name)} is {value}; it must be 1 or more.")

    def to_cli_args(self) -> list[str]:
        """Return what has to be written on a command line to have these bounds."""
        usual = asdict(DEFAULT_CHUNKS)
        chosen = {name: value for name, value in asdict(self).items() if value != usual[name]}
        return [word for name, value in chosen.items() for word in (cli_flag(name), str(value))]


DEFAULT_CHUNKS = ChunkSizes()


def cli_flag(name: str) -> str:
    """Return the option that sets a bound."""
    return f"--{name.replace('_', '-')}"
