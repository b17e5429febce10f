"Checkpoints of earlier versions still resume."
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from miniai import (
    AccumulateCB,
    AdamW,
    BatchSchedCB,
    CheckpointCB,
    DataLoaders,
    MetricsCB,
    RecorderCB,
    TrainLearner,
    accuracy,
)
from miniai.checkpoint import load, save
from miniai.resume.restore import ResumeError

GOLDEN = Path(__file__).parents[1]/'golden'
ROUNDING = '0.bias', '1.running_mean'  # the gradient of a bias before BatchNorm is rounding alone: each processor's own


def golden_run(folder):
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 240).reshape(40, 6).sin()
    dls = DataLoaders.from_arrays(x, (x.sum(1) > 0).long(), valid=.2, bs=5, seed=3)
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(.2), nn.Linear(4, 2))
    sched = BatchSchedCB(partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=1e-2, total_steps=14))
    given = [MetricsCB(accuracy=accuracy), RecorderCB(lr=lambda cb: cb.pg['lr']), sched, AccumulateCB(2)]
    return TrainLearner(model, dls, F.cross_entropy, 1e-3, [*given, CheckpointCB(folder, batches=1)], AdamW)


def start_of(folder, name):
    folder.mkdir()
    shutil.copy(GOLDEN/f'{name}.safetensors', folder/'checkpoint-00001-1-00000003.safetensors')
    state = load(folder/'checkpoint-00001-1-00000003.safetensors')
    (state.get('fingerprint') or state['versions'])['torch'] = str(torch.__version__)  # whatever is installed now
    return state


def resumed(folder, state):
    (state.get('fingerprint') or state['versions'])['threads'] = torch.get_num_threads()
    if 'versions' in state: state['versions'].pop('python', None)
    save(folder/'checkpoint-00001-1-00000003.safetensors', state)
    learn = golden_run(folder)
    learn.fit(2, resume=True)
    return learn


@pytest.mark.filterwarnings('ignore:the result may differ from that of the run.*version of miniai')
@pytest.mark.parametrize('name', ['run_0_2', 'run_0_3'])
def test_a_run_that_an_earlier_version_stopped_ends_as_an_uninterrupted_one(name, tmp_path):
    learn, whole = resumed(tmp_path/'a', start_of(tmp_path/'a', name)), golden_run(tmp_path/'whole')
    whole.fit(2)
    for (nm, a), b in zip(learn.model.state_dict().items(), whole.model.state_dict().values(), strict=True):
        if nm not in ROUNDING: torch.testing.assert_close(a, b, msg=nm, rtol=1e-4, atol=1e-5)
    assert [(r['phase'], r['loss']) for r in learn.history] == [
        (r['phase'], pytest.approx(r['loss'], rel=1e-5 if r['phase'] == 'train' else 5e-3)) for r in whole.history]
    assert learn.cbs[1].recs['lr'] == pytest.approx(whole.cbs[1].recs['lr'])


def test_parts_that_miniai_0_2_saved_by_number_are_refused_by_name(tmp_path):
    state = start_of(tmp_path/'a', 'run_0_2')
    state['extras'] = dict(critic=dict(kind='Linear', state={}))
    with pytest.raises(ResumeError, match=r'miniai 0\..* and holds extras in an old form: finish the run with that'):
        resumed(tmp_path/'a', state)
