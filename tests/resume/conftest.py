"Tests of resuming train many tiny models: one thread each, as threads that wait for one another take most of the time."
import pytest
import torch


@pytest.fixture(autouse=True, scope='module')
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv('OMP_NUM_THREADS', '1')  # for processes that tests start
        yield
    torch.set_num_threads(before)
