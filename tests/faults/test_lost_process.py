"""One of two processes is killed: the job ends with a reason and can resume."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from launches import TORCHRUN, steps_logged, write_recipe

from magicvideo import cli

STEPS = 400


def second_of(agent):
    """The id of the process with rank 1."""
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    for child in children:
        if b"RANK=1" in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"no process of rank 1 among {children}")


@pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="needs /proc")
def test_a_killed_process_ends_the_job_and_one_process_can_resume(prepared, tmp_path, capsys):
    recipe, output = tmp_path / "tiny.yaml", tmp_path / "run"
    write_recipe(recipe, prepared, output, STEPS)
    agent = subprocess.Popen(
        [*TORCHRUN, "-m", "magicvideo", "train", str(recipe), "--threads", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while steps_logged(output) < 20 and agent.poll() is None:
        time.sleep(0.02)
    assert agent.poll() is None, agent.communicate()[1]
    os.kill(second_of(agent), signal.SIGKILL)
    _, errors = agent.communicate(timeout=120)
    assert agent.returncode != 0
    steps = steps_logged(output) + 20
    assert steps < STEPS
    assert "another process of this run failed during step" in errors
    assert "the same command resumes from the latest checkpoint" in " ".join(errors.split())

    changes = ("--set", "autoencoder.batch_size=4", "--set", f"autoencoder.steps={steps}")
    alone = ("train", recipe, "--threads", "1", *changes)
    assert cli.run(list(map(str, alone))) == 0
    said = capsys.readouterr().out
    assert "resumes from step" in said
    assert "in place of" not in said  # the same samples an update
    lines = (output / "autoencoder" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, steps + 1))
