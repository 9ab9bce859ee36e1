import os
import signal

import pytest

from magicvideo.training import signals
from magicvideo.training.signals import catch_signals, ignore_sigterm


def test_signals_are_recorded_and_a_second_ctrl_c_ends_at_once(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    with catch_signals() as noted:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGINT):
            os.kill(os.getpid(), number)  # a launcher passes on what the terminal sent to all
        assert noted == [signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGINT]
        monkeypatch.setattr(signals, "_ONE_KEYSTROKE", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_process_that_reports_its_error_is_not_killed_by_the_launcher():
    before = signal.getsignal(signal.SIGTERM)
    try:
        with catch_signals():
            ignore_sigterm()
        os.kill(os.getpid(), signal.SIGTERM)  # ends a process that does not ignore it
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no SIGHUP")
def test_a_closed_terminal_is_recorded_unless_nohup_was_used():
    # the tests may themselves run under nohup
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with catch_signals() as noted:
            signal.raise_signal(signal.SIGHUP)
        assert noted == [signal.SIGHUP]
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with catch_signals() as noted:
            signal.raise_signal(signal.SIGHUP)
        assert noted == []
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
