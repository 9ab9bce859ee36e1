"""One worker process, started by the server: `python -m magicvideo.studio DEVICE PARENT`.

The settings come through standard input, since they may hold passwords, which the arguments of a
process would show to everybody on the machine.
"""

import logging
import sys

from magicvideo.studio.config import config_from_json
from magicvideo.studio.worker import run_worker

if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="worker: %(message)s")
    run_worker(config_from_json(sys.stdin.buffer.read()), sys.argv[1], int(sys.argv[2]))
