"A process for the tests that run programs of users."
import pytest

import outcomes


@pytest.fixture(scope='module')
def server():
    server = outcomes.Server()
    yield server
    server.close()
