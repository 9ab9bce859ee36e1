"""Shards of random numbers, written without any network."""

import numpy as np

from magicvideo.data.shards.fp16_scaling import pack
from magicvideo.data.shards.index import SampleNote
from magicvideo.data.shards.tar_shard import ARRAYS, array_bytes, sample_key

SHAPES = {"latents": (9, 3, 4, 5), "embeddings": (9, 6), "tokens": (7, 8)}


def members(shard, clips, variants):
    """The members of a shard: clip k of shard s has latents around 10 s + k."""
    for place in range(clips):
        for variant in range(variants):
            rng = np.random.default_rng((shard, place, variant))
            packed = {
                name: pack(rng.normal(10 * shard + place, 1, shape).astype(np.float32))
                for name, shape in SHAPES.items()
            }
            note = SampleNote(
                id=f"{shard}/{place}",
                file="a.mp4",
                source="test",
                source_sha256=None,
                caption=f"clip {place} of {shard}, variant {variant}",
                background=None,
                fps=12,
                loops=False,
                parts={},
                **{f"{name}_scale": scale for name, (_, scale) in packed.items()},
            )
            key = sample_key(place, variant)
            yield f"{key}.json", note.model_dump_json().encode()
            for name in ARRAYS:
                yield f"{key}.{name}.npy", array_bytes(packed[name][0])
