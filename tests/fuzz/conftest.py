"""Files opened for writing are recorded while hostile files are read."""

import sys

import pytest
from hostile_inputs import watch_files


@pytest.fixture(scope="session", autouse=True)
def _watched_files():
    sys.addaudithook(watch_files)
