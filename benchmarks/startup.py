"""CPU time from the start of Python to the first diffusion step, beside that of `import torch`.

    python benchmarks/startup.py

Each line is the least of several runs in fresh processes, in CPU seconds (user and system): waiting
for a disk or for other programs does not count.
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
    "imports of generate": "import magicvideo.pipelines.text_to_video, magicvideo.cli.generate",
    "generate, to the first step": """
from magicvideo.pipelines.text_to_video import MagicVideoPipeline
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


def measure(code: str, repeats: int) -> tuple[float, int]:
    """Return the least CPU seconds of some runs, and the number of loaded modules."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = []
    for _ in range(repeats):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code + _REPORT],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        seconds, modules = json.loads(done.stderr.strip().splitlines()[-1])
        found.append((float(seconds), int(modules)))
    return min(found)


def main() -> None:
    """Print one line for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    results = {name: measure(code, repeats) for name, code in _CASES.items()}
    torch_seconds = results["import torch"][0]
    print(f"{'':30}{'CPU s':>8}{'x torch':>9}{'modules':>9}")
    for name, (seconds, modules) in results.items():
        print(f"{name:30}{seconds:8.2f}{seconds / torch_seconds:9.2f}{modules:9,}")


if __name__ == "__main__":
    main()
