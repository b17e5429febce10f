"Going on from a checkpoint: the same to the bit, from every batch, however often; what differs is refused by name."
import math
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler as S
from torch.utils.data import DataLoader, TensorDataset

from miniai import ActivationStats, Callback, DataLoaders, RecorderCB, accuracy
from miniai.accel import AccumulateCB
from miniai.callbacks.metrics import Mean
from miniai.checkpoint import FolderInUseError, SaveError, disk, saving, verify
from miniai.learner import CancelFitException, MomentumLearner
from miniai.optim import AdamW, Lion
from miniai.resume import fingerprint
from miniai.resume import start as resume
from miniai.resume.checkpoint import CheckpointCB
from miniai.resume.signals import OutlastSignals
from miniai.resume.state import ResumeError
from resuming import Noisy, Quiet, StopCB, digest, net, run
from small import learner
from stopping import ALWAYS, boundaries

HERE = Path(__file__).parents[1]


def interrupted(folder, epoch, batch, training=True, **kwargs):
    learn = run(folder, cbs=[StopCB(epoch, batch, training)], **kwargs)
    with pytest.raises(RuntimeError, match='stopped by a test'): learn.fit(2)


def resumed(folder, to=2, seed=88, **kwargs):
    learn = run(folder, **kwargs)
    torch.manual_seed(seed)
    learn.fit(to, resume=True)
    return learn


def whole(kind, folder):
    learn = run(folder, kind)
    learn.fit(2)
    return digest(learn), len(learn.dls.train)


@pytest.mark.parametrize('kind', ['memory', '0'])
def test_from_every_batch_of_two_epochs_everything_ends_as_in_the_uninterrupted_run(kind, tmp_path):
    want, _ = whole(kind, tmp_path/'whole')
    for at in boundaries(kind):
        interrupted(tmp_path/str(at), *at, kind=kind, minutes=ALWAYS)
        assert digest(resumed(tmp_path/str(at), kind=kind)) == want, at


def test_with_two_workers_and_seeded_samples_it_does_too(tmp_path):
    want, n = whole('2', tmp_path/'whole')
    for at in ((0, 1, True), (1, 4, True), (1, n - 1, True), (1, 1, False)):
        interrupted(tmp_path/str(at), *at, kind='2', minutes=ALWAYS)
        assert digest(resumed(tmp_path/str(at), kind='2')) == want, at


def test_three_interruptions_in_a_row_leave_no_trace(tmp_path):
    want, _ = whole('memory', tmp_path/'whole')
    interrupted(tmp_path/'run', 0, 1)
    for epoch, batch in ((0, 5), (1, 2)):
        with pytest.raises(RuntimeError, match='stopped'):
            run(tmp_path/'run', cbs=[StopCB(epoch, batch)]).fit(2, resume=True)
    assert digest(resumed(tmp_path/'run')) == want


def test_checkpoints_do_not_change_a_run(tmp_path):
    plain = run()
    plain.fit(2)
    assert whole('memory', tmp_path)[0] == digest(plain)


@pytest.mark.parametrize('background', [False, True])
def test_checkpoints_by_epoch_go_on_too_and_in_the_background(background, tmp_path):
    want, _ = whole('memory', tmp_path/'whole')
    interrupted(tmp_path/'run', 1, 2, batches=None, background=background)
    assert digest(resumed(tmp_path/'run', batches=None, background=background)) == want


def test_after_completion_nothing_is_done_and_all_is_there(tmp_path):
    want, _ = whole('memory', tmp_path)
    again = resumed(tmp_path)
    assert digest(again) == want
    assert [r['phase'] for r in again.history] == ['train', 'eval']*2
    assert again.epoch == 1


def test_a_longer_run_goes_on_where_the_schedule_allows_it_and_is_refused_clearly_where_not(tmp_path):
    long = run(tmp_path/'long', n_epochs=3)
    long.fit(3)
    first = run(tmp_path/'run', sched_steps=21)
    first.fit(2)
    assert digest(resumed(tmp_path/'run', 3, sched_steps=21)) == digest(long)
    whole('memory', tmp_path/'short')
    with pytest.raises(ResumeError, match='schedule 0: total_steps was 14 in the checkpoint and is 21 here'):
        resumed(tmp_path/'short', 3, n_epochs=3)
    with pytest.raises(ResumeError, match='has done 2 epochs, and 1 were asked for'): resumed(tmp_path/'short', 1)


# What is refused

def wider(): return torch.nn.Sequential(*net()[:-1], torch.nn.Linear(144, 4))


def test_another_model_data_or_optimizer_is_refused_with_both_values(tmp_path):
    interrupted(tmp_path, 0, 2)
    says = r"model 5.weight was '\(3, 144\) float32' in the checkpoint and is '\(4, 144\)"
    with pytest.raises(ResumeError, match=says): resumed(tmp_path, model=wider())
    other = run(tmp_path)
    other.dls.valid.bs = 3
    with pytest.raises(ResumeError, match='validation data: batches was 2 in the checkpoint and is 3 here'):
        other.fit(2, resume=True)
    other = run(tmp_path)
    other.dls.train.seed = 4
    with pytest.raises(ResumeError, match='training data: seed was 3 in the checkpoint and is 4 here'):
        other.fit(2, resume=True)
    other = run(tmp_path)
    other.opt_func = partial(Lion, ema=.9)
    with pytest.raises(ResumeError, match="optimizer was 'AdamW' in the checkpoint and is 'Lion' here"):
        other.fit(2, resume=True)


class Shaped(nn.Sequential): "The same weights, by another class."


@pytest.mark.parametrize(('change', 'says'), [
    (lambda learn, mp: setattr(learn, 'model', nn.Sequential(*learn.model, nn.Linear(3, 3))),
     "module 6 was nothing in the checkpoint and is 'Linear' here"),
    (lambda learn, mp: learn.model.__setitem__(2, nn.GELU()), "module 2 was 'ReLU' in the checkpoint and is 'GELU'"),
    (lambda learn, mp: setattr(learn, 'model', Shaped(*learn.model)), "module was 'Sequential' .* and is 'Shaped'"),
    (lambda learn, mp: learn.model.double(), "model 0.weight was .*float32' .* and is .*float64'"),
    (lambda learn, mp: setattr(learn, 'dls', DataLoaders.from_arrays(Noisy(44).x, Noisy(44).y, valid=.2, bs=5, seed=3)),
     'training data: samples was 32 in the checkpoint and is 35 here'),
    (lambda learn, mp: setattr(learn.dls.train, 'bs', 6), 'training data: batches was 7 .* and is 6 here'),
    (lambda learn, mp: setattr(learn.dls.train, 'shuffle', False), 'training data: order was True .* and is False'),
    (lambda learn, mp: learn.cbs.remove(learn.cbs[2]), r"schedules was \['OneCycleLR'\] .* and is \[\] here"),
    (lambda learn, mp: setattr(learn.cbs[2], 'sched', lambda o: torch.optim.lr_scheduler.StepLR(o, 5)),
     r"schedules was \['OneCycleLR'\] .* and is \['StepLR'\] here"),
    (lambda learn, mp: setattr(learn, 'opt_func', partial(AdamW, ema=.9, state='bf16', wd=.3)),
     'group 0: weight_decay was 0.01 .* and is 0.3 here'),
    (lambda learn, mp: mp.setattr(torch, '__version__', '1.0'), "torch was '.*' .* and is '1.0' here"),
    (lambda learn, mp: mp.setattr(fingerprint, 'version_of', lambda x: '9'), "miniai was '.*' .* and is '9' here"),
    (lambda learn, mp: mp.setattr(torch, 'get_num_threads', lambda: 99), 'threads was .* and is 99 here'),
    (lambda learn, mp: setattr(learn.cbs[5].crop, 'generator', None),
     r"generators of callbacks was \['torch.Generator on cpu'\] .* and is \[\] here"),
    (lambda learn, mp: learn.cbs.append(RecorderCB(x=lambda cb: 1.)),
     r"records of callbacks was \['Quiet 1', .*'RecorderCB 1', .*\] .* is \[.*'RecorderCB 2'\]"),
    (lambda learn, mp: setattr(learn.cbs[1], 'd', dict(mom=lambda cb: 1.)),
     r"RecorderCB 1 takes back no such records: records \['lr'\] were saved, and here are \['mom'\]"),
    (lambda learn, mp: learn.cbs[0].all_metrics.update(f1=Mean()),
     r"Quiet 1 .*: metrics \['accuracy', 'loss'\] were saved, and here are \['accuracy', 'f1', 'loss'\]"),
    (lambda learn, mp: setattr(learn, 'loss_func', F.mse_loss),
     "loss function was 'cross_entropy' in the checkpoint and is 'mse_loss' here")])
def test_what_differs_is_refused_with_both_values_before_anything_is_put_back(change, says, one_run, monkeypatch):
    learn = run(one_run)
    change(learn, monkeypatch)
    before = digest_of(learn.model)
    with pytest.raises(ResumeError, match=says): learn.fit(2, resume=True)
    assert digest_of(learn.model) == before


def test_another_share_of_the_gradients_that_a_learner_keeps_is_refused(tmp_path):
    def keeping(mom): return learner([CheckpointCB(tmp_path)], MomentumLearner, mom=mom)
    keeping(.85).fit(1)
    with pytest.raises(ResumeError, match=r'mom was 0\.85 in the checkpoint and is 0\.9 here'):
        keeping(.9).fit(2, resume=True)
    keeping(.85).fit(2, resume=True)


def digest_of(model): return [x.tolist() for x in model.state_dict().values()]


@pytest.fixture(scope='module')
def one_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')
    interrupted(folder, 0, 2)
    return folder


@pytest.mark.parametrize(('saved', 'says'), [
    (dict(cuda=[torch.zeros(16, dtype=torch.uint8)]), 'random state: CUDA generators was 1 .* and is 0 here'),
    (dict(numpy=dict(bit_generator='PCG64')), "random state: numpy's generator was 'PCG64' .* and is 'MT19937' here"),
    (dict(python=[2, torch.zeros(1), None]), "random state: version of Python's generator was 2 .* and is 3 here")])
def test_a_random_state_of_another_kind_is_refused_with_both(saved, says, one_run, monkeypatch):
    learn = run(one_run)
    def loaded(path, real=resume.load):
        state = real(path)
        state['random'] |= saved
        return state
    monkeypatch.setattr(resume, 'load', loaded)
    with pytest.raises(ResumeError, match=says): learn.fit(2, resume=True)


SCHEDULES = dict(
    restarts=lambda o: S.CosineAnnealingWarmRestarts(o, 3), cyclic=lambda o: S.CyclicLR(o, 1e-4, 1e-2, 4,
                                                                                        cycle_momentum=False),
    milestones=lambda o: S.MultiStepLR(o, [2, 5]), lambdas=lambda o: S.LambdaLR(o, lambda i: 1/(i + 1)),
    chained=lambda o: S.ChainedScheduler([S.ConstantLR(o, .5, 2), S.ExponentialLR(o, .9)]),
    sequence=lambda o: S.SequentialLR(o, [S.LinearLR(o, .1, 1, 3), S.CosineAnnealingLR(o, 10)], [3]))


@pytest.mark.parametrize('name', SCHEDULES)
@pytest.mark.filterwarnings('ignore:.*lr_scheduler.step:UserWarning', 'ignore:.*epoch parameter:UserWarning')
def test_a_run_goes_on_exactly_with_any_schedule(name, tmp_path):
    def learn(folder, cbs=()):
        out = run(folder, cbs=cbs)
        out.cbs[2].sched = SCHEDULES[name]
        return out
    want = learn(tmp_path/'whole')
    want.fit(2)
    with pytest.raises(RuntimeError, match='stopped'): learn(tmp_path/'run', [StopCB(1, 2)]).fit(2)
    again = learn(tmp_path/'run')
    again.fit(2, resume=True)
    assert digest(again) == digest(want)


def test_schedules_inside_another_are_compared_too(tmp_path):
    def learn(gamma, cbs=()):
        out = run(tmp_path, cbs=cbs)
        out.cbs[2].sched = lambda o: S.ChainedScheduler([S.ConstantLR(o, .5, 2), S.ExponentialLR(o, gamma)])
        return out
    with pytest.raises(RuntimeError, match='stopped'): learn(.9, [StopCB(0, 2)]).fit(2)
    with pytest.raises(ResumeError, match=r'schedule 0: _schedulers was .*0\.9.* and is .*0\.8'):
        learn(.8).fit(2, resume=True)


def test_statistics_of_other_modules_are_refused(tmp_path):
    def stats(kind): return ActivationStats(lambda m: isinstance(m, kind))
    with pytest.raises(RuntimeError, match='stopped'):
        run(tmp_path, cbs=[stats(nn.Conv2d), StopCB(0, 2)]).fit(2)
    says = 'ActivationStats 1 takes back no such records: statistics of 1 modules were saved, but 2 are hooked now'
    with pytest.raises(ResumeError, match=says):
        run(tmp_path, cbs=[stats((nn.Conv2d, nn.Linear))]).fit(2, resume=True)


def test_a_new_run_in_a_folder_of_another_is_refused_as_is_a_second_one_at_once(tmp_path):
    interrupted(tmp_path, 0, 2)
    with pytest.raises(ResumeError, match=r'holds 3 checkpoint\(s\) of an earlier run, such as'):
        run(tmp_path, keep=1).fit(2)
    assert len(list(tmp_path.glob('*.safetensors'))) == 3
    class Second(Callback):
        def before_batch(self, learn):
            with pytest.raises(FolderInUseError): run(tmp_path).fit(2, resume=True)
            raise CancelFitException()
    run(tmp_path, cbs=[Second()]).fit(2, resume=True)


def test_resume_needs_a_checkpoint_callback_and_without_a_checkpoint_starts_at_the_start(tmp_path):
    with pytest.raises(ValueError, match=r'resume=True\) needs one CheckpointCB'): learner().fit(1, resume=True)
    assert digest(resumed(tmp_path/'new', seed=0)) != ''


def test_where_draws_in_workers_cannot_be_repeated_a_run_stopped_in_its_first_epoch_begins_that_anew(tmp_path):
    told = 'cannot go on exactly: its dataset draws random numbers in 1 worker'
    def learn(folder, *cbs):
        torch.manual_seed(1)
        dl = DataLoader(Noisy(20), 5, shuffle=True, num_workers=1)
        return learner([CheckpointCB(folder, batches=1), *cbs], model=net(), dls=DataLoaders(dl, dl))
    alone = learn(tmp_path/'alone')
    with pytest.warns(UserWarning, match=told): alone.fit(1)
    with pytest.warns(UserWarning, match=told), pytest.raises(RuntimeError, match='stopped'):
        learn(tmp_path/'run', StopCB(0, 1)).fit(1)
    assert names(tmp_path/'run')[0] == 'checkpoint-00000-1-00000000.safetensors'
    again = learn(tmp_path/'run')
    with (pytest.warns(UserWarning, match='stays besides'),
          pytest.warns(UserWarning, match='passed over, .*; going on from checkpoint-00000-1-00000000')):
        again.fit(1, resume=True)
    assert digest(again) == digest(alone)


def test_such_a_run_that_fails_in_its_first_batch_leaves_no_checkpoint(tmp_path):
    dl = DataLoader(Noisy(20), 5, shuffle=True, num_workers=1)
    def learn(model, **kwargs): return learner([CheckpointCB(tmp_path, **kwargs)], model=model, dls=DataLoaders(dl, dl))
    for background in (False, True):
        with pytest.warns(UserWarning, match='cannot go on exactly'), pytest.raises(RuntimeError, match='mat1'):
            learn(nn.Sequential(nn.Flatten(), nn.Linear(5, 3)), background=background).fit(1)
        assert names(tmp_path) == []
    with pytest.warns(UserWarning, match='cannot go on exactly'): learn(net()).fit(1)


def test_where_no_checkpoint_between_epochs_is_left_the_reason_and_the_files_are_told(tmp_path):
    dl = DataLoader(Noisy(20), 5, shuffle=True, num_workers=1)
    def learn(*cbs): return learner([CheckpointCB(tmp_path, batches=1), *cbs], model=net(), dls=DataLoaders(dl, dl))
    with pytest.warns(UserWarning, match='cannot go on exactly'), pytest.raises(RuntimeError, match='stopped'):
        learn(StopCB(0, 1)).fit(1)
    (tmp_path/'checkpoint-00000-1-00000000.safetensors').unlink()
    with pytest.raises(ResumeError, match=r'wrap it in miniai.SeededSamples\(dataset\).*no checkpoint lies between'):
        learn().fit(1, resume=True)


def test_fewer_epochs_than_are_begun_are_refused_and_those_that_are_begun_are_ended(tmp_path):
    interrupted(tmp_path, 1, 2)
    with pytest.raises(ResumeError, match='has done 1 epochs and part of one, and 1 were asked for'):
        resumed(tmp_path, 1)
    assert resumed(tmp_path).epoch == 1


@pytest.mark.parametrize('change', [lambda learn: None, lambda learn: setattr(learn, 'loss_func', F.mse_loss)])
def test_a_refused_fit_leaves_history_and_optimizer_of_the_one_before(change, tmp_path):
    learn = run(tmp_path)
    learn.fit(2)
    history, opt = learn.history, learn.opt
    assert len(history) == 4
    change(learn)
    with pytest.raises(ResumeError): learn.fit(2, resume=learn.loss_func is F.mse_loss)
    assert learn.history is history
    assert learn.opt is opt
    assert learn.first_batch == 0


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path):
    want, _ = whole('memory', tmp_path/'whole')
    interrupted(tmp_path/'run', 0, 3)
    newest = max((tmp_path/'run').glob('*.safetensors'))
    newest.write_bytes(newest.read_bytes()[:-9])
    with pytest.warns(UserWarning, match=newest.name): assert digest(resumed(tmp_path/'run')) == want


def names(folder): return sorted(p.name for p in folder.glob('checkpoint*'))


def damage(path): path.write_bytes(path.read_bytes()[:-9])


def test_where_none_is_whole_all_are_named(tmp_path):
    interrupted(tmp_path, 0, 1, best='-loss')
    for p in tmp_path.glob('checkpoint*'): damage(p)
    (tmp_path/'best.safetensors').write_text('')
    says = r'none of the 2 checkpoint\(s\) in .* is whole: .*-00000001.*-00000002.*best.safetensors, of the best epoch'
    with pytest.warns(UserWarning, match='skipped'), pytest.raises(ResumeError, match=says): resumed(tmp_path)


def test_a_state_is_gone_on_with_by_the_fit_that_asked_alone(tmp_path):
    run(tmp_path).fit(2)
    learn = run(tmp_path)
    with pytest.raises(ResumeError, match='has done 2 epochs, and 1 were asked for'): learn.fit(1, resume=True)
    with pytest.raises(ResumeError, match='of an earlier run'): learn.fit(2)
    with pytest.raises(ValueError, match='was called with train=False'): learn.fit(2, train=False, resume=True)
    assert learn.start is None


class Unsavable(Callback):
    def state_dict(self): return dict(seen={1})
    def load_state_dict(self, state): pass


def test_what_cannot_be_saved_is_told_before_the_first_batch(tmp_path):
    with pytest.raises(TypeError, match=r"\['Unsavable 1'\]\['seen'\] is a builtins.set"):
        run(tmp_path/'a', cbs=[Unsavable()]).fit(1)
    says = r"no figure 'acuracy' to be best at; there are \['accuracy', 'loss', 'seconds'\]"
    with pytest.raises(ValueError, match=says):
        run(tmp_path/'a', best='acuracy').fit(1)
    assert not (tmp_path/'a').exists()
    class Own(Callback):
        def after_epoch(self, learn): pass
    with pytest.raises(ValueError, match="no figure 'own' to be best at"):
        run(tmp_path/'b', cbs=[Own()], best='own').fit(1)
    assert names(tmp_path/'b')[-1] == 'checkpoint-00001-3-00000000.safetensors'


def test_mistakes_are_told_at_once(tmp_path):
    for kwargs, says in ((dict(keep=0), 'keep must be a whole number above 0, got 0'),
                         (dict(batches=-1), 'batches must be a whole number above 0'),
                         (dict(keep=1.5), 'keep must be .* got 1.5'), (dict(batches='5'), "batches must be .* got '5'"),
                         (dict(minutes=0), 'minutes must be a number above 0'), (dict(minutes='x'), 'minutes must be')):
        with pytest.raises(ValueError, match=says): CheckpointCB(tmp_path, **kwargs)
    with pytest.raises(ValueError, match="no figure 'f1' to be best at; there are"):
        run(tmp_path/'best', best='f1').fit(1)


# What is kept

LAST = ['00001-1-00000007', '00002-3-00000000']


def test_the_last_ones_and_the_best_stay(tmp_path):
    learn = run(tmp_path, keep=2, best='accuracy')
    learn.fit(2)
    names = sorted(p.name for p in tmp_path.glob('*.safetensors'))
    assert names == ['best.safetensors', *(f'checkpoint-{at}.safetensors' for at in LAST)]
    for p in tmp_path.glob('*.safetensors'): verify(p)


def test_the_last_ones_alone_stay_when_saved_in_the_background_too(tmp_path):
    run(tmp_path, keep=2, background=True).fit(2)
    assert sorted(p.name for p in tmp_path.glob('*.safetensors')) == [f'checkpoint-{at}.safetensors' for at in LAST]


def test_looks_and_searches_save_nothing(tmp_path):
    learn = learner([CheckpointCB(tmp_path/'run'), Quiet(accuracy=accuracy)], lr=.1)
    learn.fit(1, train=False)
    learn.lr_find()
    learn.capture_preds()
    learn.summary()
    assert not (tmp_path/'run').exists()


def test_a_longer_run_counted_from_a_finished_one_keeps_its_newest(tmp_path):
    def longer(cbs=()): return learner([CheckpointCB(tmp_path, batches=1, keep=1), Quiet(), *cbs])
    longer().fit(1)
    with pytest.raises(RuntimeError, match='stopped'): longer([StopCB(1, 0)]).fit(2, resume=True)
    assert names(tmp_path) == ['checkpoint-00001-1-00000001.safetensors']


def test_damaged_and_foreign_files_stay_and_take_no_place(tmp_path):
    interrupted(tmp_path, 0, 5, keep=2)
    damage(tmp_path/names(tmp_path)[-1])
    (tmp_path/'checkpoint-mine.safetensors').write_text('x')
    with pytest.warns(UserWarning, match='skipped'), pytest.raises(RuntimeError, match='stopped'):
        run(tmp_path, cbs=[StopCB(1, 1)], keep=1).fit(2, resume=True)
    assert names(tmp_path) == ['checkpoint-00001-1-00000002.safetensors', 'checkpoint-mine.safetensors']


def test_what_was_passed_over_takes_no_newer_ones_place(tmp_path):
    interrupted(tmp_path, 0, 5, batches=3)
    damage(tmp_path/names(tmp_path)[-1])
    with pytest.warns(UserWarning, match='skipped'), pytest.raises(RuntimeError, match='stopped'):
        run(tmp_path, cbs=[StopCB(0, 4)], keep=1).fit(2, resume=True)
    assert names(tmp_path) == ['checkpoint-00000-1-00000005.safetensors', 'checkpoint-00000-1-00000006.safetensors']


def test_an_old_one_stays_where_the_new_one_is_not_sure_to(tmp_path, monkeypatch):
    def no_links(a, b): raise OSError(1, 'no second names')
    def unsure(fd): raise OSError(5, 'nobody knows')
    class Unsure(Callback):
        def before_batch(self, learn):
            if learn.iter != 3: return
            monkeypatch.setattr(disk, 'link', no_links)
            monkeypatch.setattr(disk, 'fsync_dir', unsure)
    with pytest.raises(SaveError, match='nobody knows'): run(tmp_path, cbs=[Unsure()], keep=1).fit(1)
    assert names(tmp_path) == [f'checkpoint-00000-1-0000000{i}.safetensors' for i in (3, 4)]


def test_an_old_one_stays_until_the_new_one_is_on_the_disk(tmp_path, monkeypatch):
    seen, real = [], disk.fsync_dir
    def watched(fd):
        seen.append(len([nm for nm in names(tmp_path) if (tmp_path/nm).stat().st_size]))
        return real(fd)
    monkeypatch.setattr(disk, 'fsync_dir', watched)
    run(tmp_path, keep=1, background=True).fit(1)
    assert min(seen[2:-1]) >= 2
    assert len(names(tmp_path)) == 1


def test_where_an_epoch_cannot_be_taken_up_the_last_one_between_epochs_stays(tmp_path):
    dl = DataLoader(Noisy(20), 5, shuffle=True, num_workers=1)
    learn = learner([CheckpointCB(tmp_path, batches=1, keep=1), StopCB(1, 1)], model=net(), dls=DataLoaders(dl, dl))
    with (pytest.warns(UserWarning, match='cannot go on exactly'),
          pytest.raises(RuntimeError, match='stopped')): learn.fit(2)
    assert names(tmp_path) == [f'checkpoint-00001-1-0000000{i}.safetensors' for i in (0, 2)]
    learn.cbs.pop()
    says = 'passed over, .*-1-00000002.*its dataset draws random numbers.*going on from .*-1-00000000.*between epochs'
    besides = pytest.warns(UserWarning, match='The last checkpoint between epochs stays besides')
    with besides, pytest.warns(UserWarning, match=says): learn.fit(2, resume=True)
    assert names(tmp_path) == ['checkpoint-00002-3-00000000.safetensors']


def test_a_metric_that_cannot_tell_its_state_is_named(tmp_path):
    class Mute:
        def reset(self): pass
        def update(self, preds, targets): pass
        def compute(self): return 0.
    with pytest.raises(TypeError, match="metric 'mute', a Mute, has no state_dict and load_state_dict"):
        run(tmp_path, cbs=[Quiet(mute=Mute())]).fit(1)


@pytest.mark.parametrize('background', [False, True])
def test_in_the_background_as_many_stay(background, tmp_path):
    run(tmp_path, keep=2, background=background).fit(2)
    assert sorted(p.name for p in tmp_path.glob('*.safetensors')) == [f'checkpoint-{at}.safetensors' for at in LAST]


# Beside training

class FailFrom:
    "A disk that is full from one training batch on."
    order = -1
    def __init__(self, monkeypatch, epoch, batch): self.monkeypatch, self.at = monkeypatch, (epoch, batch)
    def before_batch(self, learn):
        if learn.training and (learn.epoch, learn.iter) == self.at: self.monkeypatch.setattr(disk, 'write', no_space)


def no_space(fd, data): raise OSError(28, 'No space left on device')


class Beat:
    "Says which batches began, and lets the save beside them end before the next."
    def __init__(self): self.began = []
    def before_batch(self, learn): self.began.append((learn.epoch, learn.training, learn.iter))
    def cleanup_batch(self, learn):
        until = time.monotonic() + 20
        while any(not p.done() for p in saving._pending.values()) and time.monotonic() < until: time.sleep(.002)


@pytest.mark.parametrize(('epoch', 'batch', 'batches', 'last'), [
    (0, 5, 3, (0, True, 6)), (1, 1, 2, (1, True, 2)), (0, 6, 1, (0, False, 0))])
def test_a_failure_beside_training_is_raised_by_the_next_batch(epoch, batch, batches, last, tmp_path, monkeypatch):
    beat = Beat()
    beat.order = math.inf  # after the CheckpointCB
    learn = run(tmp_path, cbs=[FailFrom(monkeypatch, epoch, batch), beat], batches=batches, background=True)
    with pytest.raises(SaveError, match='No space left') as e: learn.fit(2)
    assert 'raised by callback CheckpointCB in event cleanup_batch' in e.value.__notes__
    monkeypatch.undo()
    assert beat.began[-1] == last
    assert not list(tmp_path.glob('.*.part'))
    for p in tmp_path.glob('*.safetensors'): verify(p)
    want = run()
    want.fit(2)
    assert digest(resumed(tmp_path, background=True)) == digest(want)  # the folder is free, the old one whole


def test_a_failure_of_the_last_save_is_raised_at_the_end(tmp_path, monkeypatch):
    learn = run(tmp_path, cbs=[FailFrom(monkeypatch, 0, 0)], batches=None, background=True)
    with pytest.raises(SaveError, match='No space left'): learn.fit(1)
    assert [p.name for p in tmp_path.iterdir()] == ['.miniai.lock']


@pytest.mark.parametrize('opt_func', [partial(torch.optim.Adam, amsgrad=True), AdamW])
def test_memory_for_saves_beside_training_is_taken_once_before_the_first(opt_func, tmp_path, monkeypatch):
    taken, real = [], saving.CopyBuffer.copies
    monkeypatch.setattr(saving.CopyBuffer, 'copies', lambda b, c: taken.append(len(b.memory)) or real(b, c))
    learn = learner([CheckpointCB(tmp_path, batches=3, background=True)], opt_func=opt_func)
    learn.fit(8)
    assert len(taken) > 3
    assert len(set(taken)) == 1
    assert taken[0] > 0


FULL = f"""
import sys; sys.path.insert(0, {str(HERE)!r})
import torch
from miniai.checkpoint import disk, saving
from resuming import *
class Full(Callback):
    def before_batch(self, learn):
        if not learn.training or learn.iter != 3: return
        for p in list(saving._pending.values()): p.wait()
        disk.write = no_space
def no_space(fd, data): raise OSError(28, 'No space left on device')
run(sys.argv[1], cbs=[Full()], background=True).fit(2)
"""


def test_a_process_whose_disk_is_full_exits_with_1_says_so_once_and_frees_the_folder(tmp_path):
    child = subprocess.run([sys.executable, '-W', 'ignore', '-c', FULL, str(tmp_path)], capture_output=True, text=True)
    assert child.returncode == 1
    assert child.stderr.count('miniai.checkpoint.errors.SaveError') == 1
    assert 'miniai: error' not in child.stderr
    assert [p.name for p in sorted(tmp_path.iterdir())][1:] == [f'checkpoint-00000-1-0000000{i}.safetensors'
                                                                for i in (1, 2, 3)]
    resumed(tmp_path)


# Signals

SCRIPT = f"""
import sys; sys.path.insert(0, {str(HERE)!r})
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
import torch
torch.set_num_threads(1)
from resuming import *
class Slow(Callback):
    def before_batch(self, learn):
        Path(sys.argv[1], 'at').write_text(f'{{learn.epoch}} {{learn.training}} {{learn.iter}}')
        time.sleep(float(sys.argv[3]))
learn = run(Path(sys.argv[1])/'run', cbs=[Slow()], batches=None)
learn.fit(2, resume=sys.argv[2] == 'resume')
print(digest(learn))
"""


def started(folder, how, pause=.02): return subprocess.Popen(
    [sys.executable, '-W', 'ignore', '-c', SCRIPT, str(folder), how, str(pause)], stdout=subprocess.PIPE,
    stderr=subprocess.PIPE, text=True)


def wait_for(path, text, limit=60):
    until = time.monotonic() + limit
    while time.monotonic() < until:
        if path.exists() and path.read_text().startswith(text): return
        time.sleep(.01)
    raise AssertionError(f'{path} never said {text}')


@pytest.mark.parametrize(('number', 'code', 'when'), [
    (signal.SIGTERM, 143, '0 True 2'), (signal.SIGINT, 130, '1 True 4'), (signal.SIGTERM, 143, '0 False 0')])
def test_a_signal_finishes_the_batch_saves_and_leaves_and_the_run_goes_on_exactly(number, code, when, tmp_path):
    whole_run = started(tmp_path, 'new', 0)
    want, errors = whole_run.communicate(timeout=120)
    assert whole_run.returncode == 0, errors
    for p in (tmp_path/'run').glob('*'): p.unlink()
    (tmp_path/'at').unlink()
    child = started(tmp_path, 'new', .3)
    wait_for(tmp_path/'at', when)
    child.send_signal(number)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == code
    assert f'{number.name}: finishing the batch and saving; once more to leave at once' in errors
    again = started(tmp_path, 'resume', 0)
    got, errors = again.communicate(timeout=120)
    assert got == want, errors


def test_a_second_signal_leaves_at_once(tmp_path):
    child = started(tmp_path, 'new', 30)
    wait_for(tmp_path/'at', '0 True 0')
    child.send_signal(signal.SIGTERM)
    time.sleep(.3)
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=20) == -signal.SIGTERM
    child.communicate()


class SignalAtTheEnd(Callback):
    def after_fit(self, learn): os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize('background', [False, True])
def test_a_signal_after_the_last_batch_still_leaves_with_its_code_once_all_is_saved(background, tmp_path):
    learn = run(tmp_path, cbs=[SignalAtTheEnd()], background=background)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left: learn.fit(2)
    assert (left.value.code, signal.getsignal(signal.SIGTERM)) == (143, before)
    assert verify(max(tmp_path.glob('*.safetensors')))
    assert digest(resumed(tmp_path)) == digest(learn)


def test_workers_outlast_signals_for_the_length_of_a_fit(tmp_path):
    seen = []
    def own(worker): pass
    class Look(Callback):
        def before_batch(self, learn): seen.append(learn.dls.train.worker_init_fn)
    learn = run(tmp_path, '2', cbs=[Look()], n_epochs=1)
    learn.dls.train.worker_init_fn = own
    learn.fit(1)
    assert {type(f) for f in seen} == {OutlastSignals}
    assert {f.then for f in seen} == {learn.dls.train.worker_init_fn} == {own}


def test_handlers_are_put_back_and_in_a_notebook_an_interrupt_leaves_a_usable_learner(tmp_path, monkeypatch):
    from miniai.resume import signals
    monkeypatch.setattr(signals, '_in_notebook', lambda: True)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    class Interrupt(Callback):
        def before_batch(self, learn):
            if learn.training and (learn.epoch, learn.iter) == (0, 3): os.kill(os.getpid(), signal.SIGINT)
    learn = run(tmp_path, cbs=[Interrupt()], batches=None)
    with pytest.raises(KeyboardInterrupt): learn.fit(2)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert [p.name for p in tmp_path.glob('*.safetensors')] == ['checkpoint-00000-1-00000004.safetensors']
    want = run()
    want.fit(2)
    learn.cbs.remove(learn.cbs[-1])
    learn.fit(2, resume=True)
    assert [r['loss'] for r in learn.history] == [r['loss'] for r in want.history]


def test_a_torch_dataloader_over_tensors_needs_no_seeds(tmp_path):
    ds = TensorDataset(Noisy().x, Noisy().y)
    def learn(folder, cbs=()):
        torch.manual_seed(4)
        dl = DataLoader(ds, 5, shuffle=True, num_workers=1)
        return learner([CheckpointCB(folder, batches=1), *cbs], model=net(), dls=DataLoaders(dl, dl))
    with pytest.raises(RuntimeError, match='stopped'): learn(tmp_path/'run', [StopCB(0, 3)]).fit(1)
    torch.manual_seed(77)
    again, want = learn(tmp_path/'run'), learn(tmp_path/'whole')
    again.fit(1, resume=True)
    want = learn(tmp_path/'whole')
    want.fit(1)
    assert all(map(torch.equal, again.model.parameters(), want.model.parameters()))


def same_when_gone_on_with(make, folder, at=(1, 1)):
    "Is a run that was stopped after a batch, and gone on with, the one that was left alone?"
    alone = make(folder/'alone')
    alone.fit(2)
    with pytest.raises(RuntimeError, match='stopped by a test'): make(folder/'mine', StopCB(*at)).fit(2)
    again = make(folder/'mine')
    again.fit(2, resume=True)
    return digest(again) == digest(alone)


def test_what_the_optimizer_trains_beside_the_model_goes_on_too(tmp_path):
    def make(folder, *cbs):
        learn = run(folder, cbs=cbs)
        warmth, plain = nn.Parameter(torch.ones(())), learn.opt_func
        learn.loss_func = lambda preds, y: nn.functional.cross_entropy(preds*warmth, y)
        learn.opt_func = lambda ps, lr: plain([*ps, warmth], lr)
        return learn
    assert same_when_gone_on_with(make, tmp_path)


class FreezeCB(Callback):
    def before_fit(self, learn): learn.model[0].weight.requires_grad_(False)
    def after_epoch(self, learn): learn.model[0].weight.requires_grad_(True)


def test_what_was_thawed_on_the_way_is_not_frozen_again(tmp_path):
    def make(folder, *cbs): return run(folder, cbs=[FreezeCB(), *cbs])
    assert same_when_gone_on_with(make, tmp_path)


class Remembering(nn.Module):
    def forward(self, x):
        self.register_buffer('seen', x.detach().mean() + getattr(self, 'seen', 0.), persistent=False)
        return x + 1e-3*self.seen

    def get_extra_state(self): return dict(words=['sea'])
    def set_extra_state(self, state): self.words = state['words']


def test_buffers_that_a_forward_made_and_states_that_are_no_tensors_go_on_too(tmp_path):
    def make(folder, *cbs):
        torch.manual_seed(0)
        return run(folder, cbs=cbs, model=nn.Sequential(Remembering(), net()))
    assert same_when_gone_on_with(make, tmp_path)


@pytest.mark.parametrize(('there', 'here', 'says'), [
    (dict(clip_norm=1.), {}, "optimizer option clip_norm was '1.0' in the checkpoint and is 'None' here"),
    (dict(cautious=True), {}, 'optimizer option stages was .*cautious=True.* and is .*cautious=False'),
    (dict(rounding='stochastic'), dict(rounding='stochastic', seed=1), "option seed was '0' .* is '1'")])
def test_another_option_of_the_optimizer_is_refused(tmp_path, there, here, says):
    def make(options):
        learn = run(tmp_path)
        learn.opt_func = partial(learn.opt_func, **options)
        return learn
    make(there).fit(1)
    with pytest.raises(ResumeError, match=says): make(here).fit(2, resume=True)


def test_another_number_of_batches_to_a_step_is_refused_and_changes_nothing(tmp_path):
    def make(n): return learner([CheckpointCB(tmp_path), Quiet(accuracy=accuracy), AccumulateCB(n)], lr=.1)
    make(3).fit(1)
    learn = make(2)
    before = [p.clone() for p in learn.model.parameters()]
    with pytest.raises(ResumeError, match='n was 3 in the checkpoint and is 2 here'): learn.fit(2, resume=True)
    assert all(map(torch.equal, before, learn.model.parameters()))


def test_a_run_without_a_validation_loader_goes_on(tmp_path):
    def make(*cbs):
        learn = run(tmp_path, cbs=cbs)
        learn.dls = SimpleNamespace(train=learn.dls.train)
        return learn
    with pytest.raises(RuntimeError, match='stopped by a test'): make(StopCB(1, 1)).fit(2, valid=False)
    learn = make()
    learn.fit(2, valid=False, resume=True)
    assert [r['epoch'] for r in learn.history] == [0, 1]
