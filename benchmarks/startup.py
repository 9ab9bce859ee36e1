"""Measure CPU time from the start of Python to the first diffusion step, relative to torch.

    python -m benchmarks.startup

Each figure is the least of several runs in fresh processes, in CPU seconds (user and system) of one
thread: waiting for a disk or for other programs does not count. The second table imports the
libraries of `generate` one after the other in one process, so it says what each of them adds.
"""

import argparse
import json
import os
import subprocess
import sys

_CASES = {
    "python": "pass",
    "import torch": "import torch",
    "magicvideo --help": "from magicvideo.cli import run; run(['--help'])",
    "magicvideo info": "from magicvideo.cli import run; run(['info'])",
    "imports of generate": """
import magicvideo.cli.generate
from magicvideo import MagicVideoPipeline
""",
    "generate, to the first step": """
from magicvideo import MagicVideoPipeline
class Started(Exception): pass
def stop(*_):
    raise Started
pipeline = MagicVideoPipeline.from_pretrained(offload_device="cpu")
from magicvideo.pipelines.request import GenerationSettings
(request,) = pipeline.build_requests(["a cat"], [0], GenerationSettings())
try:
    pipeline.generate_latents(request, stop)
except Started:
    pass
""",
}
_REPORT = """
import json, resource, sys
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([used.ru_utime + used.ru_stime, len(sys.modules)]), file=sys.stderr)
"""
# in this order, each row counts what the earlier rows have not imported
_LIBRARIES = {
    "torch": "torch",
    "torch._dynamo, which diffusers.utils imports": "torch._dynamo",
    "diffusers.utils, with huggingface_hub": "diffusers.utils",
    "transformers.utils": "transformers.utils",
    "transformers.modeling_utils": "transformers.modeling_utils",
    "CLIP": "transformers.models.clip.modeling_clip",
    "DiffusionPipeline, with all networks of diffusers": "diffusers.pipelines.pipeline_utils",
    "magicvideo": "magicvideo.pipelines.text_to_video",
}
_IMPORT_IN_ORDER = """
import gc, importlib, json, resource, sys
gc.disable()
def now():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
rows = []
for name in json.loads(sys.argv[1]):
    before, modules = now(), len(sys.modules)
    importlib.import_module(name)
    rows.append([now() - before, len(sys.modules) - modules])
print(json.dumps(rows), file=sys.stderr)
"""


def _run(code: str, *arguments: str) -> str:
    """Return the last line that a new process writes to standard error."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return done.stderr.strip().splitlines()[-1]


def measure(code: str, repeats: int) -> tuple[float, int]:
    """Return the minimum CPU seconds over the runs, and the number of loaded modules."""
    found = [json.loads(_run(code + _REPORT)) for _ in range(repeats)]
    seconds, modules = min(found)
    return float(seconds), int(modules)


def measure_libraries(repeats: int) -> dict[str, tuple[float, int]]:
    """Return the minimum CPU seconds that each library adds, and the number of its modules."""
    names = json.dumps(list(_LIBRARIES.values()))
    runs = [json.loads(_run(_IMPORT_IN_ORDER, names)) for _ in range(repeats)]
    least = [min(rows) for rows in zip(*runs, strict=True)]
    return {
        label: (float(seconds), int(modules))
        for label, (seconds, modules) in zip(_LIBRARIES, least, strict=True)
    }


def main() -> None:
    """Print one line per case and per library."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    cases = {name: measure(code, repeats) for name, code in _CASES.items()}
    libraries = measure_libraries(repeats)
    torch_seconds = cases["import torch"][0]
    for rows in (cases, libraries):
        print(f"\n{'':50}{'CPU s':>8}{'x torch':>9}{'modules':>9}")
        for name, (seconds, modules) in rows.items():
            print(f"{name:50}{seconds:8.2f}{seconds / torch_seconds:9.2f}{modules:9,}")


if __name__ == "__main__":
    main()
