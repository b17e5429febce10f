"What every test has: no screen, one seed, no folder or variable of the user's, and no clock to beat."
import os
import sys

os.environ['MPLBACKEND'] = 'agg'
os.environ['HF_HUB_OFFLINE'] = '1'
os.environ['OMP_NUM_THREADS'] = '1'  # tests run side by side: more threads than cores wait for one another

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available(): os.environ.setdefault('TRITON_INTERPRET', '1')  # read when Triton is imported

settings.register_profile('default', deadline=None)


def pytest_collection_modifyitems(items):
    """Of a test with more than 40 cases every tenth is measured by coverage, which makes Python half as fast before
    Python 3.12. The other cases run through the same lines."""
    tests = {}
    for item in items: tests.setdefault(item.nodeid.split('[')[0], []).append(item)
    for cases in tests.values():
        for i, case in enumerate(cases):
            if len(cases) > 40 and i % 10: case.add_marker('no_cover')


@pytest.fixture(autouse=True)
def _same_start(monkeypatch):
    monkeypatch.delenv('MINIAI_DATA', raising=False)
    torch.manual_seed(0)
    yield
    pyplot = sys.modules.get('matplotlib.pyplot')
    if pyplot: pyplot.close('all')
