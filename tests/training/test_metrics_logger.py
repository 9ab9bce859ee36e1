"""The log of a stage: damage and write errors do not stop training."""

import json
import os

import pytest
from PIL import Image

from magicvideo.training.metrics_logger import FILE, MetricsLogger

DAMAGED = [b"\xff\xfe", b'{"step":"x"}', b'{"step":null}', b"[" * 100_000, b"7", b'{"loss": 1}']


@pytest.mark.parametrize("line", DAMAGED)
def test_damaged_lines_are_skipped_with_a_warning(tmp_path, caplog, line):
    good = [b'{"step": 1, "loss": 0.5}', b'{"step": 2, "loss": 0.25}']
    (tmp_path / FILE).write_bytes(b"\n".join([good[0], line, good[1], b'{"step": 3, "lo']))
    with MetricsLogger(tmp_path, 2) as logger:
        logger.write(3, {"loss": 0.125})
    steps = [json.loads(text)["step"] for text in (tmp_path / FILE).read_text().splitlines()]
    assert steps == [1, 2, 3]
    assert "1 damaged lines" in caplog.text


def test_a_line_truncated_by_a_kill_is_not_damage(tmp_path, caplog):
    (tmp_path / FILE).write_text('{"step": 1}\n{"step": 2}\n{"ste')
    with MetricsLogger(tmp_path, 1):
        pass
    assert (tmp_path / FILE).read_text() == '{"step": 1}\n'
    assert caplog.text == ""


class BrokenTracker:
    """A tracker whose file is on a full disk."""

    def log(self, *_values, **_options):
        raise OSError(28, "No space left on device")

    log_images = finish = log


def test_a_tracker_that_fails_is_a_warning(tmp_path, caplog):
    with MetricsLogger(tmp_path, 0) as logger:
        logger._tracker = BrokenTracker()
        for step in (1, 2):
            logger.write(step, {"loss": 1.0})
        logger.log_image(2, Image.new("RGB", (4, 4)))
    assert len((tmp_path / FILE).read_text().splitlines()) == 2
    assert caplog.text.count("No space left") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")  # noqa: PTH110
def test_a_full_disk_below_the_log_is_a_warning(tmp_path, caplog):
    with MetricsLogger(tmp_path, 0) as logger:
        logger._lines.close()
        logger._lines = open("/dev/full", "w")  # noqa: PTH123, SIM115
        logger.write(1, {"loss": 1.0})
    assert caplog.text.count("No space left") == 1
