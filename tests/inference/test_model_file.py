"Saved models: the same predictions in another process, and files that are damaged, foreign or name code are refused."
import pickle
import subprocess
import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from miniai import AdamW, AverageCB, CheckpointCB, DataLoaders, TrainLearner, checkpoint, load
from miniai.checkpoint import CheckpointError
from miniai.inference.model_file import MODEL_FILE, ModelFileError, model_state
from miniai.models.by_name import MODELS, build_model
from predicting import Quiet, flat, named, pixels, tabular, two_inputs
from small import learner, loaders, same, weights

ANOTHER = """
import sys, miniai
from pathlib import Path
from miniai.checkpoint import load, save
for folder in Path(sys.argv[1]).iterdir():
    predict = miniai.load(folder)
    save(folder/'found.safetensors', predict.probabilities(load(folder/'inputs.safetensors')))
"""


@pytest.fixture(scope='module')
def elsewhere(tmp_path_factory):
    "Probabilities by each built-in model, and by another process that knows only the file."
    root, want = tmp_path_factory.mktemp('models'), {}
    for name in MODELS:
        learn = tabular() if name == 'table' else named(name, channels=3, n_epochs=2, widths=[4, 6, 8])
        inputs = learn.dls.valid.tensors[:-1] if name == 'table' else [learn.dls.train.tensors[0][:9]]
        (root/name).mkdir()
        learn.save_model(root/name/MODEL_FILE)
        checkpoint.save(root/name/'inputs.safetensors', inputs)
        want[name] = learn.predictor().probabilities(inputs)
    subprocess.run([sys.executable, '-c', ANOTHER, str(root)], check=True)
    return {name: (want[name], checkpoint.load(root/name/'found.safetensors')) for name in MODELS}


@pytest.mark.parametrize('name', MODELS)
def test_another_process_predicts_the_same_bits(name, elsewhere): assert torch.equal(*elsewhere[name])


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    learn, path = named(n_epochs=2), tmp_path_factory.mktemp('saved')/MODEL_FILE
    learn.save_model(path)
    return learn, path


def test_the_predictor_comes_back_with_class_names_from_the_file_or_its_folder(saved):
    learn, path = saved
    x = pixels(4)[0]
    for found in (load(path), load(str(path)), load(path.parent)):
        assert list(map(repr, found(x))) == list(map(repr, learn.predictor()(x)))
        assert (found.outputs, found.recipe.to_dict()) == ('classes', learn.dls.recipe.to_dict())
        assert not any(m.training for m in found.model.modules())


@settings(max_examples=15)
@given(st.data())
def test_one_flipped_bit_anywhere_is_refused(saved, data):
    _, path = saved
    whole = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, 8*len(whole) - 1))
    whole[bit//8] ^= 1 << bit % 8
    damaged = path.with_name('damaged.safetensors')
    damaged.write_bytes(whole)
    with pytest.raises(CheckpointError): load(damaged)


def test_loading_leaves_the_random_state_as_it_is(saved):
    before = torch.get_rng_state()
    load(saved[1])
    assert torch.equal(before, torch.get_rng_state())


def test_files_of_another_kind_are_refused_with_what_they_are(tmp_path):
    (tmp_path/'a.pkl').write_bytes(pickle.dumps(nn.Linear(2, 2)))
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path/'a.pt')
    save_file(nn.Linear(2, 2).state_dict(), tmp_path/'plain.safetensors')
    (tmp_path/'text.safetensors').write_text('hello')
    for nm in ('a.pkl', 'a.pt'):
        with pytest.raises(CheckpointError, match='a pickle or zip archive, not a checkpoint of miniai'):
            load(tmp_path/nm)
    with pytest.raises(CheckpointError, match='a safetensors file, but not a checkpoint'):
        load(tmp_path/'plain.safetensors')
    with pytest.raises(CheckpointError, match=r'text\.safetensors'): load(tmp_path/'text.safetensors')
    with pytest.raises(FileNotFoundError, match='nothing'): load(tmp_path/'nothing')
    with pytest.raises(FileNotFoundError, match=r'no model\.safetensors in .*: learn\.save_model\('): load(tmp_path)


def test_a_checkpoint_of_a_run_is_no_saved_model(tmp_path):
    learner([Quiet(), CheckpointCB(tmp_path, best='-loss')]).fit(1)
    with pytest.raises(ModelFileError, match=r'a checkpoint of a run, not a saved model: learn\.load_best'):
        load(tmp_path/'best.safetensors')


def net(outputs=3): return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, outputs))


def test_a_model_of_ones_own_is_passed_in_and_stays_as_it_is(tmp_path):
    learn = flat(F.cross_entropy, 3, lambda x: (x[:, 0] > 0).long())
    learn.save_model(tmp_path/'m.safetensors')
    with pytest.raises(ModelFileError, match=r'torch\.nn.*Sequential, was not built by name.*load\(path, model=…\)'):
        load(tmp_path/'m.safetensors')
    mine, x = net().train(), torch.randn(5, 4)
    before = {nm: t.clone() for nm, t in mine.state_dict().items()}
    found = load(tmp_path/'m.safetensors', model=mine)
    assert torch.equal(found.probabilities([x]), learn.predictor().probabilities([x]))
    assert same(before, mine.state_dict())
    assert mine.training
    for wrong, said in ((net(4), 'size mismatch'), (nn.Linear(4, 3), 'Missing key'), (nn.Identity(), 'Unexpected key')):
        with pytest.raises(ModelFileError, match=f'(?s)holds the weights of another model than this .*{said}'):
            load(tmp_path/'m.safetensors', model=wrong)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_a_model_keeps_its_precision(dtype, tmp_path):
    learn = named(n_epochs=0)
    learn.model.to(dtype)
    learn.save_model(tmp_path/'m.safetensors')
    found, x = load(tmp_path/'m.safetensors'), pixels(6)[0]
    assert {p.dtype for p in found.model.parameters()} == {dtype}
    assert torch.equal(found.probabilities([x]), learn.predictor().probabilities([x]))


def test_tied_weights_come_back(tmp_path):
    def tied():
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        model[2].weight = model[0].weight
        return model
    learn = flat(F.cross_entropy, 4, lambda x: (x[:, 0] > 0).long(), tied())
    learn.save_model(tmp_path/'m.safetensors')
    x = torch.randn(5, 4)
    assert torch.equal(load(tmp_path/'m.safetensors', tied()).probabilities([x]), learn.predictor().probabilities([x]))


def test_several_inputs_come_back(tmp_path):
    learn = two_inputs()
    learn.save_model(tmp_path/'m.safetensors')
    x = torch.randn(3, 4), torch.tensor([0, 1, 2])
    found = load(tmp_path/'m.safetensors', type(learn.model)())
    assert [p.probabilities for p in found(x)] == [p.probabilities for p in learn.predictor()(x)]


def test_a_learner_whose_loaders_have_no_recipe_is_saved_too(tmp_path):
    learn, x = learner(), torch.randn(5, 4)
    learn.save_model(tmp_path/'m.safetensors')
    found = load(tmp_path/'m.safetensors', model=net())
    assert (found.recipe, found.outputs) == (None, 'classes')
    assert torch.equal(found.probabilities([x]), learn.predictor().probabilities([x]))


@pytest.fixture
def module(monkeypatch):
    mine, calls = ModuleType('mine'), []
    def make(channels, outputs, width=3):
        calls.append(width)
        return nn.Sequential(nn.Flatten(), nn.Linear(144*channels, outputs))
    mine.make = make
    monkeypatch.setitem(sys.modules, 'mine', mine)
    return calls


def test_a_file_that_names_a_function_runs_it_only_if_allowed(module, tmp_path):
    learn = named('mine:make', n_epochs=0, width=7)
    learn.save_model(tmp_path/'m.safetensors')
    module.clear()
    with pytest.raises(ModelFileError, match='names the function mine:make, and loading would run it: pass allow_code'):
        load(tmp_path/'m.safetensors')
    load(tmp_path/'m.safetensors', model=learn.model)
    assert module == []
    load(tmp_path/'m.safetensors', allow_code=True)
    assert module == [7]


def test_a_function_named_by_a_made_up_file_is_not_imported(monkeypatch, tmp_path):
    (tmp_path/'evil.py').write_text('raise SystemExit("ran")')
    monkeypatch.syspath_prepend(tmp_path)
    state = model_state(named(n_epochs=0).predictor())
    state['net'] |= dict(name='evil:model')
    checkpoint.save(tmp_path/MODEL_FILE, state)
    with pytest.raises(ModelFileError, match='names the function evil:model'): load(tmp_path)
    assert 'evil' not in sys.modules
    with pytest.raises(SystemExit, match='ran'): load(tmp_path, allow_code=True)  # so it would have run


def test_options_that_name_files_of_weights_are_not_used_again(monkeypatch, tmp_path):
    given = []
    timm = ModuleType('timm')
    timm.list_models = lambda: ['resnet18']
    def create(name, in_chans, num_classes, **options):
        given.append(options)
        return nn.Sequential(nn.Flatten(), nn.Linear(144*in_chans, num_classes))
    timm.create_model = create
    monkeypatch.setitem(sys.modules, 'timm', timm)
    named('timm:resnet18', n_epochs=0, pretrained=True, checkpoint_path='a.pth', drop_rate=.1).save_model(tmp_path/'m')
    load(tmp_path/'m')
    assert given[1] == dict(drop_rate=.1)


def test_a_model_that_was_changed_after_it_was_built_is_refused(tmp_path):
    learn = named(n_epochs=0)
    learn.model[0][1] = nn.Tanh()  # no weight differs
    learn.save_model(tmp_path/'m.safetensors')
    with pytest.raises(ModelFileError, match="was changed after it was built as 'simple': build it in the same way"):
        load(tmp_path/'m.safetensors')
    x = pixels(3)[0]
    found = load(tmp_path/'m.safetensors', model=learn.model)
    assert torch.equal(found.probabilities([x]), learn.predictor().probabilities([x]))


def test_an_address_in_what_a_layer_says_is_no_change(module, monkeypatch, tmp_path):
    monkeypatch.setattr(nn.Flatten, 'extra_repr', lambda self: f'by {object()!r}')
    named('mine:make', n_epochs=0).save_model(tmp_path/'m.safetensors')
    load(tmp_path/'m.safetensors', allow_code=True)


def best_of(folder, n_epochs=4, cbs=(), **kwargs):
    "A Learner after a fit that kept its best epoch, and that epoch's weights."
    learn, at = learner([Quiet(), *cbs], lr=.5, **kwargs), {}
    class Note:
        order = 99
        def after_epoch(self, learn):
            if not learn.training: at[learn.epoch] = weights(learn)
    learn.cbs += [Note(), CheckpointCB(folder, best='-loss')]
    learn.fit(n_epochs)
    losses = {r['epoch']: r['loss'] for r in learn.history if r['phase'] == 'eval'}
    epoch = min(losses, key=losses.get)
    return learn, at[epoch], losses[epoch]


@pytest.mark.parametrize('inside', ['', 'checkpoints'])
@pytest.mark.parametrize('averaged', [False, True])
def test_load_best_gives_the_model_the_weights_that_were_judged_best(inside, averaged, tmp_path):
    how = dict(cbs=[AverageCB()], opt_func=lambda params, lr: AdamW(params, lr/5, ema=.5)) if averaged else {}
    learn, want, loss = best_of(tmp_path/inside, **how)
    assert not same(weights(learn), want)
    learn.load_best(tmp_path)
    assert same(weights(learn), want)
    assert learn.evaluate()['loss'] == pytest.approx(loss, rel=1e-6)


def test_load_best_says_what_is_missing_or_wrong_and_changes_nothing(tmp_path):
    learn = TrainLearner(net(), loaders(), F.cross_entropy)
    with pytest.raises(FileNotFoundError, match=r"no best\.safetensors in .*: CheckpointCB\('.*', best='-loss'\)"):
        learn.load_best(tmp_path)
    best_of(tmp_path, 1)
    other = TrainLearner(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5)), DataLoaders([], []), F.mse_loss)
    before = weights(other)
    with pytest.raises(ModelFileError, match=r'(?s)the weights of another model.*size mismatch'):
        other.load_best(tmp_path)
    assert same(before, weights(other))
    (tmp_path/'best.safetensors').write_bytes((tmp_path/'best.safetensors').read_bytes()[:-3])
    with pytest.raises(CheckpointError, match='truncated'): learn.load_best(str(tmp_path))


def test_the_file_says_versions_and_kind_to_those_who_inspect_it(saved):
    scalars = checkpoint.inspect(saved[1]).scalars
    assert (scalars['kind'], scalars['outputs'], scalars['net/name']) == ('model', 'classes', 'simple')
    assert scalars['versions/torch'] == torch.__version__
    assert build_model(scalars['net/name'], dict(channels=1, outputs=3))


def test_a_path_where_nothing_is_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'there is no run folder or saved model at .*mistyped'):
        load(tmp_path/'mistyped')
