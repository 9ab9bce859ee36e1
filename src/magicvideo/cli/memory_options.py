"""The options that bound memory, and what is said when it ends all the same."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import typer

from magicvideo.errors import UserError
from magicvideo.pipelines.chunking import DEFAULT_CHUNKS, ChunkSizes

# What torch says on each of its devices: CUDA and MPS, cuBLAS, the CPU on Linux and elsewhere
_SIGNS = ("out of memory", "ALLOC_FAILED", "can't allocate memory", "not enough memory")
_WANTED = re.compile(r"allocate (\d+(?:\.\d+)?)\.? (bytes|\w+iB)")


@dataclass(frozen=True)
class Memory:
    """How much of a video the last two stages have before them at once."""

    decoder_frames: Annotated[
        int, typer.Option(help="Frames that are decoded at a time; fewer take less memory.")
    ] = DEFAULT_CHUNKS.decoder_frames
    upscaler_frames: Annotated[
        int, typer.Option(help="Frames that are made large at a time; fewer take less memory.")
    ] = DEFAULT_CHUNKS.upscaler_frames
    upscaler_tile: Annotated[
        int,
        typer.Option(
            help="Longest side of what is made large at a time, in pixels of the small frames."
        ),
    ] = DEFAULT_CHUNKS.upscaler_tile

    def bounds(self) -> ChunkSizes:
        """Return the bounds.

        Raises:
            UserError: If one holds nothing.
        """
        return ChunkSizes(
            decoder_frames=self.decoder_frames,
            upscaler_frames=self.upscaler_frames,
            upscaler_tile=self.upscaler_tile,
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ended, on whatever device."""
    signs = any(sign in str(error) for sign in _SIGNS)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and signs)


def out_of_memory_error(error: BaseException, advice: str) -> UserError:
    """Return the one sentence about the end of memory.

    Args:
        error: One of which `is_out_of_memory` is true.
        advice: What to do, as the second half of the sentence.
    """
    wanted = _WANTED.search(str(error))
    asked = f" ({wanted[1]} {wanted[2]} more were asked for)" if wanted else ""
    return UserError(f"There is not enough memory{asked}; {advice}.")


@contextmanager
def report_out_of_memory(advice: str) -> Iterator[None]:
    """Turn the end of memory into one sentence.

    Raises:
        UserError: In its place.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory_error(error, advice) from None
