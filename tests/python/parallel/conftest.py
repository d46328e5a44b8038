import pytest

from processes import Processes


@pytest.fixture(scope="session")
def processes():
    started = Processes()
    yield started
    started.stop()
