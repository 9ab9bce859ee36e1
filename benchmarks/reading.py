"""Measure the speed of reading videos, relative to a plain decoding loop in the same run.

    python -m benchmarks.reading

Three readers take turns on each file, one thread each: a loop of PyAV that decodes every frame to
RGB, `read_clip` (frames cropped and resized to 64 pixels, as for training), and `iter_frames`
(whole frames, as for single stages). The minimum CPU time over several rounds counts, which depends
little on other processes. The test files are generated: 960x540 H.264 in MP4, VP9 in WebM at
480x270, and a transparent animated WebP of 256 pixels.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import av
import numpy as np
import typer
from PIL import Image, ImageSequence

from magicvideo.media.video_reader import iter_frames, read_clip


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds per reader; the fastest counts.")] = 5,
) -> None:
    """Measure and print a table."""
    print("| file | plain loop, s | read_clip / plain | iter_frames / plain |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for path in write_files(Path(folder)):
            readers = (plain_loop(path), lambda: read_clip(path, 64), lambda: drain(path))  # noqa: B023
            plain, clip, stream = fastest(readers, rounds)
            print(f"| {path.name} | {plain:.3f} | {clip / plain:.2f} | {stream / plain:.2f} |")


def write_files(folder: Path) -> list[Path]:
    """Write a moving texture in three formats."""
    coarse = np.random.default_rng(0).integers(0, 256, (68, 120, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((960, 540))
    paths = [folder / "h264-960x540.mp4", folder / "vp9-480x270.webm", folder / "alpha-256.webp"]
    for path, codec, size in (
        (paths[0], "libx264", (960, 540)),
        (paths[1], "libvpx-vp9", (480, 270)),
    ):
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=25)
            assert isinstance(stream, av.VideoStream)
            (stream.width, stream.height), stream.pix_fmt = size, "yuv420p"
            for number in range(50):
                pixels = np.roll(np.asarray(picture.resize(size)), 3 * number, 1)
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    pictures = []
    for number in range(25):
        clear = Image.new("RGBA", (256, 256), (0, 0, 0, 0))
        clear.paste(picture.resize((128, 128)), (4 * number, 40))
        pictures.append(clear)
    pictures[0].save(paths[2], save_all=True, append_images=pictures[1:], duration=40)
    return paths


def plain_loop(path: Path) -> Callable[[], object]:
    """Return a loop that only decodes a file."""

    def decode_video() -> None:
        with av.open(str(path)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for frame in container.decode(video=0):
                frame.to_ndarray(format="rgb24")

    def decode_animation() -> None:
        with Image.open(path) as animation:
            for frame in ImageSequence.Iterator(animation):
                np.asarray(frame.convert("RGBA"))

    return decode_animation if path.suffix == ".webp" else decode_video


def drain(path: Path) -> None:
    """Read and discard all frames of a file."""
    for _ in iter_frames(path):
        pass


def fastest(readers: tuple[Callable[[], object], ...], rounds: int) -> list[float]:
    """Return the minimum CPU seconds of each reader; the readers take turns."""
    least = [float("inf")] * len(readers)
    for _ in range(rounds):
        for number, read in enumerate(readers):
            started = time.process_time()
            read()
            least[number] = min(least[number], time.process_time() - started)
    return least


if __name__ == "__main__":
    typer.run(main)
