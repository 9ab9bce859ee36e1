"""Chunk sizes bound the inputs of decoder and upscaler and change nothing else."""

from dataclasses import replace

import pytest
import torch
from tiny_model import SIDE, UPSCALING, VIDEO_FRAMES

from magicvideo.errors import UserError
from magicvideo.pipelines.request import DEFAULT_CHUNKS, ChunkSizes, GenerationSettings

WIDE = 60  # pixels a side, more than a tile of the tiny model has at least


@pytest.fixture
def request_(pipeline):
    return pipeline.build_requests(["a cat"], [3], GenerationSettings())[0]


@pytest.fixture
def capabilities(pipeline):
    return pipeline.capabilities


@pytest.fixture
def wide(request_):
    """A request for frames that tiles can divide."""
    return replace(request_, height=UPSCALING * WIDE, width=UPSCALING * WIDE)


def watched(network, argument):
    """The shapes of an argument in all following calls of a network."""
    shapes = []
    handle = network.register_forward_pre_hook(
        lambda _, given: shapes.append(given[argument].shape)
    )
    return handle, shapes


@torch.no_grad()
def test_no_network_exceeds_the_chunk_sizes_and_the_video_is_the_same(pipeline, request_):
    frames = torch.rand(1, 5, 3, WIDE, WIDE) * 2 - 1
    chunks = ChunkSizes(decoder_frames=3, upscaler_frames=2, upscaler_tile=40)
    latents = pipeline.generate_latents(request_)
    assert latents.shape[1] == VIDEO_FRAMES
    decoder, decoded = watched(pipeline.vae.decoder_linear, 0)
    upscaler, enlarged = watched(pipeline.upscaler, 1)
    made = (
        pipeline.decode(latents, chunks=chunks),
        pipeline.upscale(request_, frames, chunks=chunks),
    )
    for handle in (decoder, upscaler):
        handle.remove()
    assert {len(shape) for shape in decoded} == {4}
    assert {shape[0] for shape in decoded} == {3, VIDEO_FRAMES % 3}
    assert {shape[0] for shape in enlarged} == {2, 1}
    assert max(max(shape[2:]) for shape in enlarged) <= 40
    usual = pipeline.decode(latents), pipeline.upscale(request_, frames)
    for one, other in zip(made, usual, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_chunk_sizes_apply_to_all_stages(pipeline, request_):
    handle, shapes = watched(pipeline.upscaler, 1)
    video = pipeline.generate(request_, chunks=ChunkSizes(upscaler_frames=1))
    handle.remove()
    assert {shape[0] for shape in shapes} == {1}
    torch.testing.assert_close(video.frames, pipeline.generate(request_).frames, atol=1e-4, rtol=0)


@pytest.mark.parametrize("tile", [26, WIDE - 1, DEFAULT_CHUNKS.upscaler_tile])
def test_valid_tile_sizes_are_accepted(capabilities, wide, tile):
    assert capabilities.min_tile_size == 26
    capabilities.check_chunks(wide, ChunkSizes(upscaler_tile=tile))


@pytest.mark.parametrize("tile", [25, WIDE])
def test_invalid_tile_sizes_are_refused(capabilities, wide, tile):
    with pytest.raises(UserError, match=f"tile is {tile}; it must be an integer from 26 to 59"):
        capabilities.check_chunks(wide, ChunkSizes(upscaler_tile=tile))


def test_frames_below_the_minimum_tile_are_not_tiled(pipeline, request_):
    with pytest.raises(
        UserError, match=f"needs tiles of 26 pixels or more, and the frames have only {SIDE}"
    ):
        pipeline.capabilities.check_chunks(request_, ChunkSizes(upscaler_tile=20))


def test_chunk_sizes_are_reduced_to_their_minimum(capabilities, wide):
    lowered = [capabilities.reduce_memory(wide, DEFAULT_CHUNKS)]
    while (after := capabilities.reduce_memory(wide, lowered[-1])) != lowered[-1]:
        lowered.append(after)
    single = {"decoder_frames": 1, "upscaler_frames": 1}
    assert lowered == [
        ChunkSizes(**single),
        *(ChunkSizes(**single, upscaler_tile=n) for n in (30, 26)),
    ]
    alone = replace(wide, stages=("keyframes",))
    assert capabilities.reduce_memory(alone, DEFAULT_CHUNKS) == ChunkSizes(decoder_frames=1)
    for bounds in lowered:
        capabilities.check_chunks(wide, bounds)
