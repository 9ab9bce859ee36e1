"""Shards of random numbers, written without any network."""

import numpy as np

from magicvideo.data.shards.index import SampleMetadata
from magicvideo.data.shards.tar_shard import ARRAY_AXES, array_bytes, sample_key, to_scaled_fp16

SHAPES = {"latents": (9, 3, 4, 5), "embeddings": (9, 6), "tokens": (7, 8)}


def members(shard, clips, variants):
    """The members of a shard: clip k of shard s has latents around 10 s + k."""
    for place in range(clips):
        for variant in range(variants):
            rng = np.random.default_rng((shard, place, variant))
            packed = {
                name: to_scaled_fp16(rng.normal(10 * shard + place, 1, shape).astype(np.float32))
                for name, shape in SHAPES.items()
            }
            metadata = SampleMetadata(
                id=f"{shard}/{place}",
                file="a.mp4",
                source="test",
                source_sha256=None,
                caption=f"clip {place} of {shard}, variant {variant}",
                subject=f"subject {place % 2}",
                background=None,
                fps=12,
                loops=False,
                parts={},
                **{f"{name}_scale": scale for name, (_, scale) in packed.items()},
            )
            key = sample_key(place, variant)
            yield f"{key}.json", metadata.model_dump_json().encode()
            for name in ARRAY_AXES:
                yield f"{key}.{name}.npy", array_bytes(packed[name][0])
