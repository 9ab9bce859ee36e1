import os
import signal

import pytest

from magicvideo.train import signals
from magicvideo.train.signals import listening


def test_signals_are_noted_and_a_second_ctrl_c_ends_at_once(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    with listening() as noted:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGINT):
            os.kill(os.getpid(), number)  # a launcher passes on what the terminal sent to all
        assert noted == [signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGINT]
        monkeypatch.setattr(signals, "_ONE_KEYSTROKE", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before
