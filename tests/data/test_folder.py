"A folder of pictures as loaders: which pictures, which classes, which part, and batches with the bits of numpy."
import pickle
import shutil
import warnings
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from miniai import DataLoaders, TrainLearner
from miniai.data import folder as folder_py
from miniai.data.picture_files import PictureError
from miniai.data.split import split_rows
from miniai.optim import AdamW
from miniai.resume.checkpoint import CheckpointCB
from picture_folders import as_kept, drawn, in_classes, write, write_folder
from resuming import Quiet, assert_resumes_exactly

load = DataLoaders.from_folder


def targets(dl): return [i for _, y in dl.batches(0) for i in y.tolist()]


@pytest.mark.parametrize('shape', [(6, 8, 3), (6, 8)])
@pytest.mark.parametrize('keep', [True, False])
def test_batches_are_the_pictures_less_the_mean_of_training_over_its_deviation(tmp_path, shape, keep):
    names = in_classes(10)
    pictures = write_folder(tmp_path, names, shape)
    dls = load(tmp_path, valid=.3, bs=4, seed=5, memory=None if keep else 0)
    train, held_out = split_rows(20, .3, 5)
    x = np.stack([as_kept(pictures[nm]) for nm in sorted(names)])/255
    x = x.reshape(20, -1, 6, 8)
    axes = dict(axis=(0, 2, 3), keepdims=True)
    mean, std = x[train].mean(**axes), x[train].std(**axes)
    y = np.repeat([0, 1], 10)
    for dl, part in ((dls.train, train[torch.randperm(14, generator=torch.Generator().manual_seed(5*1_000_003))]),
                     (dls.valid, held_out)):
        batches = list(dl)
        assert [len(yb) for _, yb in batches] == [dl.bs]*(len(part)//dl.bs) + [len(part) % dl.bs]
        np.testing.assert_allclose(torch.cat([xb for xb, _ in batches]), (x[part] - mean)/std, rtol=1e-4, atol=1e-5)
        assert torch.cat([yb for _, yb in batches]).tolist() == y[part].tolist()
    assert (dls.train.bs, dls.valid.bs) == (4, 8)


def test_pictures_kept_and_not_kept_give_the_same_bits_in_the_same_layout(tmp_path):
    write_folder(tmp_path, in_classes(8))
    kept, streamed = load(tmp_path, bs=3), load(tmp_path, bs=3, memory=0, workers=3)
    for _ in range(2):
        for a, b in zip([*kept.train, *kept.valid], [*streamed.train, *streamed.valid], strict=True):
            assert all(map(torch.equal, a, b))
            assert a[0].stride() == b[0].stride()
    assert 'in memory' in repr(kept.train)
    assert 'in memory' not in repr(streamed.train)


@pytest.mark.parametrize('more', [0, -1])
def test_pictures_stay_in_memory_if_all_fit(tmp_path, more):
    write_folder(tmp_path, in_classes(8), (6, 7, 3))
    assert load(tmp_path, memory=16*6*7*3 + more).train.tensors[0].keep == (more == 0)


def test_by_default_half_of_the_available_memory_may_be_used(tmp_path, monkeypatch):
    write_folder(tmp_path, in_classes(8), (6, 7))
    for free, kept in ((2*16*42, True), (2*16*42 - 2, False)):
        monkeypatch.setattr(folder_py, 'available_memory', lambda free=free: free)
        assert load(tmp_path).train.tensors[0].keep == kept


@pytest.mark.parametrize(('names', 'n'), [
    (in_classes(5), (8, 2)),
    ([*in_classes(5, split='train/'), *in_classes(2, split='valid/'), *in_classes(1, split='test/')], (10, 4)),
    ([*in_classes(5, split='Training/'), *in_classes(2, split='val/')], (10, 4)),
    ([*in_classes(5, split='train/'), *in_classes(1, split='test/')], (10, 2)),
    (in_classes(5, split='train/'), (8, 2)),
    ([*in_classes(5, split='train/'), *in_classes(1, classes='b', split='valid/'), 'notes/1.png'], (10, 1)),
    (in_classes(5, classes=('car', 'train')), (8, 2)),
    (in_classes(5, classes=('ä b', '日本')), (8, 2)),
    ([*in_classes(5), '.hidden/1.png', 'a/.2.png'], (8, 2))])
def test_the_folders_say_which_pictures_are_for_training_or_a_share_is_drawn(tmp_path, names, n):
    write_folder(tmp_path, names)
    dls = load(tmp_path)
    assert (dls.train.n, dls.valid.n) == n
    assert not {*dls.train.rows.tolist()} & {*dls.valid.rows.tolist()}


@pytest.mark.parametrize('valid', [
    [1, 7], range(1, 8, 6), np.array([1, 7]), [i in (1, 7) for i in range(12)], np.arange(12) % 6 == 1,
    lambda p: p.name == '1.png'])
def test_validation_pictures_are_chosen_by_index_mask_or_function_in_the_order_of_their_paths(tmp_path, valid):
    write_folder(tmp_path, in_classes())
    dls = load(tmp_path, valid, bs=12)
    rows = dls.valid.tensors[0]
    assert [rows.files[i].relative_to(tmp_path).as_posix() for i in dls.valid.rows] == ['a/1.png', 'b/1.png']
    assert (targets(dls.valid), sorted(targets(dls.train))) == ([0, 1], [0]*5 + [1]*5)


def test_validation_pictures_are_in_another_folder(tmp_path):
    write_folder(tmp_path, in_classes(5, split='p/') + in_classes(2, split='later/') + in_classes(1, 'c', 'new/'))
    for valid in (tmp_path/'later', str(tmp_path/'later')):
        dls = load(tmp_path/'p', valid)
        assert (dls.train.n, targets(dls.valid)) == (10, [0, 0, 1, 1])
    with pytest.raises(PictureError, match='validation has the class c'): load(tmp_path/'p', tmp_path/'new')
    with pytest.raises(ValueError, match=r'is inside .*: give the folder that has the pictures for training alone'):
        load(tmp_path, tmp_path/'later')


@pytest.mark.filterwarnings('ignore:1 of 12 pictures')
def test_chosen_pictures_that_cannot_be_read_are_skipped(tmp_path):
    write_folder(tmp_path, in_classes())
    (tmp_path/'a'/'1.png').write_bytes(b'')
    dls = load(tmp_path, [1, 7], skip_bad=True)
    assert (dls.train.n, dls.valid.rows.tolist()) == (10, [7])


def test_classes_are_the_folders_names_in_order_and_targets_their_places(tmp_path):
    write_folder(tmp_path, [*in_classes(2, classes=('zebra', 'Ärger', '10', 'ant'), split='train/'), 'valid/ant/1.png'])
    dls = load(tmp_path, bs=8)
    assert dls.classes == dls.recipe.classes == ['10', 'ant', 'zebra', 'Ärger']
    assert sorted(targets(dls.train)) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert targets(dls.valid) == [1]


def test_the_share_for_validation_depends_on_the_seed_alone(tmp_path):
    write_folder(tmp_path, in_classes(20))
    drawn_rows = [load(tmp_path, seed=seed, bs=bs, memory=m).valid.rows.tolist()
                  for seed, bs, m in ((0, 4, None), (0, 8, 0), (1, 4, None))]
    assert drawn_rows[0] == drawn_rows[1] != drawn_rows[2]


def test_a_class_of_which_all_pictures_are_drawn_for_validation_stays_in_training(tmp_path):
    write_folder(tmp_path, [*in_classes(20), 'c/1.png'])
    for seed in range(8):
        dls = load(tmp_path, seed=seed)
        assert 2 in targets(dls.train)
        assert dls.train.n + dls.valid.n == 41


@pytest.mark.parametrize(('shapes', 'orientation', 'size', 'channels'), [
    ([(6, 8, 3)], 1, (6, 8), 3), ([(6, 8)], 1, (6, 8), 1), ([(6, 8), (6, 8, 3)], 1, (6, 8), 3),
    ([(6, 8, 3)], 6, (8, 6), 3),
    ([(6, 8, 3), (9, 10, 3), (30, 20, 3)], 1, (9, 9), 3), ([(300, 400, 3)], 1, (224, 224), 3)])
def test_by_default_size_and_channels_suit_the_pictures(tmp_path, shapes, orientation, size, channels):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for i, nm in enumerate(in_classes(6)): write(tmp_path/nm, drawn(*shapes[i % len(shapes)]), exif=exif)
    recipe = load(tmp_path).recipe
    assert (recipe.size, recipe.channels) == (size, channels)


@pytest.mark.parametrize(('mode', 'channels'), [
    ('1', 1), ('L', 1), ('LA', 1), ('I;16', 1), ('P', 3), ('RGBA', 3), ('RGB', 3)])
def test_pictures_without_color_are_gray(tmp_path, mode, channels):
    for nm in in_classes(5):
        (tmp_path/nm).parent.mkdir(exist_ok=True)
        (Image.fromarray(drawn(6, 6).astype(np.uint16)) if mode == 'I;16' else
         Image.fromarray(drawn(6, 6, 3)).convert(mode)).save(tmp_path/nm)
    assert load(tmp_path).recipe.channels == channels


def test_size_channels_and_fit_may_be_given(tmp_path):
    write_folder(tmp_path, in_classes(5))
    for given, shape in ((dict(size=4), (3, 4, 4)), (dict(size=(4, 5), channels=1), (1, 4, 5)),
                         (dict(size=(4, 5), fit='squash'), (3, 4, 5))):
        assert next(iter(load(tmp_path, **given).train))[0].shape[1:] == shape


def test_normalize_takes_a_pair_or_is_left_out(tmp_path):
    write_folder(tmp_path, in_classes(5))
    assert load(tmp_path, normalize=False).recipe.mean is None
    plain, = load(tmp_path, normalize=False).valid
    scaled, = load(tmp_path, normalize=([.1, .2, .3], [.5, .25, 1.])).valid
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in ([.1, .2, .3], [.5, .25, 1.]))
    torch.testing.assert_close(scaled[0], (plain[0] - mean)/std)


# Pictures that cannot be read

@pytest.fixture
def damaged(tmp_path):
    write_folder(tmp_path, in_classes(10), (32, 32, 3))
    (tmp_path/'a'/'0.png').write_bytes(b'')
    (tmp_path/'a'/'7.png').write_text('no picture')
    p = tmp_path/'b'/'3.png'
    p.write_bytes(p.read_bytes()[:500])
    return tmp_path


def test_pictures_that_cannot_be_read_are_counted_and_named_before_training(damaged):
    with pytest.raises(PictureError, match=r'3 of 20 pictures cannot be read.*skip_bad=True') as e: load(damaged)
    for nm, why in (('a/0.png', 'empty'), ('a/7.png', 'not a picture'), ('b/3.png', 'truncated')):
        assert any(nm in line and why in line for line in str(e.value).splitlines()), nm


@pytest.mark.parametrize('memory', [None, 0])
def test_skip_bad_skips_them_counts_them_and_uses_all_others(damaged, memory):
    with pytest.warns(UserWarning, match='3 of 20 pictures cannot be read and are skipped') as w:
        dls = load(damaged, skip_bad=True, bs=4, memory=memory)
    assert w[0].filename == __file__
    assert dls.train.n + dls.valid.n == 17
    assert sorted([*targets(dls.train), *targets(dls.valid)]) == [0]*8 + [1]*9


def test_in_a_large_folder_empty_pictures_are_named_first_and_others_when_they_are_needed(damaged, monkeypatch):
    monkeypatch.setattr(folder_py, '_CHECKED', 5)
    with pytest.raises(PictureError, match='1 of 20 pictures cannot be read'): load(damaged)
    shutil.copy(damaged/'a'/'1.png', damaged/'a'/'0.png')
    with pytest.raises(PictureError, match='cannot read the picture'):
        for _ in load(damaged, normalize=False).train: pass
    with pytest.warns(UserWarning, match='2 of 20'): dls = load(damaged, skip_bad=True)
    assert dls.train.n + dls.valid.n == 18


def test_if_no_picture_can_be_read_it_is_an_error_even_with_skip_bad(tmp_path):
    for nm in in_classes(3, split='train/') + in_classes(3, split='valid/'):
        write(tmp_path/nm, drawn(4, 4))
        if 'valid' in nm: (tmp_path/nm).write_bytes(b'')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with pytest.raises(PictureError, match='none of the pictures for validation can be read'):
            load(tmp_path, skip_bad=True)
    for nm in in_classes(3, split='train/'): (tmp_path/nm).write_bytes(b'')
    for given in (dict(size=4, channels=1), {}):
        with pytest.raises(PictureError, match=r'none of the .*pictures .*can be read'):
            load(tmp_path, skip_bad=True, **given)


# In a Learner

@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    path = tmp_path_factory.mktemp('pictures')
    write_folder(path, in_classes(12), (6, 6, 3))
    return path


def learner(pictures, *cbs, **kwargs):
    torch.manual_seed(0)
    body = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()
    model = nn.Sequential(*body, nn.Dropout(.2), nn.Linear(64, 2))
    return TrainLearner(model, load(pictures, bs=4, **kwargs), F.cross_entropy, 1e-2, [Quiet(), *cbs], AdamW)


@pytest.mark.parametrize('memory', [None, 0])
def test_a_fit_resumes_exactly_from_any_batch(pictures, tmp_path, memory):
    def make(path, *cbs): return learner(pictures, CheckpointCB(path, batches=1, keep=100), *cbs, memory=memory)
    assert_resumes_exactly(make, tmp_path)


def test_a_fit_resumes_with_other_memory_and_workers_and_where_the_folder_moved(pictures, tmp_path):
    shutil.copytree(pictures, tmp_path/pictures.name)
    learner(pictures, CheckpointCB(tmp_path/'run')).fit(1)
    resumed = learner(tmp_path/pictures.name, CheckpointCB(tmp_path/'run'), memory=0, workers=3)
    resumed.fit(2, resume=True)
    whole = learner(pictures)
    whole.fit(2)
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True): assert torch.equal(a, b)


def test_a_fit_that_resumes_with_other_pictures_says_that_the_result_may_differ(pictures, tmp_path):
    shutil.copytree(pictures, tmp_path/'p')
    learner(tmp_path/'p', CheckpointCB(tmp_path/'run'), normalize=False, size=6).fit(1)
    write(tmp_path/'p'/'a'/'3.png', drawn(9, 9, 3))
    with pytest.warns(UserWarning, match='result may differ.*contents'):
        learner(tmp_path/'p', CheckpointCB(tmp_path/'run'), normalize=False, size=6).fit(2, resume=True)


@pytest.mark.parametrize('copied', [deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_learner_over_a_folder_is_copied_and_pickled_and_its_copy_trains_alike(pictures, copied):
    learn = learner(pictures)
    learn.fit(1)
    new = copied(learn)
    for one in (learn, new):
        torch.manual_seed(1)
        one.fit(1)
    for a, b in zip(learn.model.parameters(), new.model.parameters(), strict=True): assert torch.equal(a, b)
