"Pictures of a DatasetDict as loaders, against the pictures themselves."
import sys

import numpy as np
import pytest
from PIL import Image

from miniai.data.hub import from_hub
from miniai.data.picture_files import PictureError
from miniai.data.table import TableError

hf = pytest.importorskip('datasets')
FEATURES = hf.Features(dict(image=hf.Image(), label=hf.ClassLabel(names=['cat', 'dog'])))


def split(n, start=0, size=(9, 7), mode='L'):
    "Pictures of one value each, of two classes in turn."
    images = [Image.new(mode, size, (start + i) if mode == 'L' else (start + i,)*3) for i in range(n)]
    return hf.Dataset.from_dict(dict(image=images, label=[i % 2 for i in range(n)]), features=FEATURES)


def test_splits_go_by_name_and_batches_are_scaled_pictures_with_their_classes():
    dls = from_hub(hf.DatasetDict(test=split(6, 100), train=split(20)), bs=4)
    assert (dls.classes, dls.train.n, dls.valid.n, len(dls.train)) == (['cat', 'dog'], 20, 6, 5)
    x, y = next(iter(dls.valid))
    values = np.arange(100, 106)/255
    mean, std = np.mean(np.arange(20)/255), np.std(np.arange(20)/255)
    np.testing.assert_allclose(x[:, 0, 0, 0], (values - mean)/std, rtol=1e-4)
    assert (tuple(x.shape), y.tolist()) == ((6, 1, 7, 9), [0, 1]*3)


@pytest.mark.parametrize(('mode', 'channels'), [('L', 1), ('RGB', 3)])
def test_a_single_split_is_divided_and_pictures_get_one_size(mode, channels):
    dls = from_hub(hf.DatasetDict(train=split(20, size=(300, 260), mode=mode)), valid=.25, size=16)
    assert (dls.train.n, dls.valid.n) == (15, 5)
    assert next(iter(dls.train))[0].shape[1:] == (channels, 16, 16)
    assert from_hub(hf.DatasetDict(train=split(8, size=(300, 260)))).recipe.size == (224, 224)


def test_a_data_set_of_the_hub_is_loaded_by_its_name(monkeypatch):
    asked = []
    monkeypatch.setattr(hf, 'load_dataset', lambda name: asked.append(name) or hf.DatasetDict(train=split(8)))
    assert from_hub('me/pets').train.source == 'me/pets of the Hugging Face hub'
    assert asked == ['me/pets']


def test_a_split_may_be_named_for_validation():
    dd = hf.DatasetDict(odd=split(4), train=split(8), test=split(6))
    assert [(dls.train.n, dls.valid.n) for dls in (from_hub(dd), from_hub(dd, 'odd'))] == [(8, 6), (8, 4)]


def test_rows_without_a_class_are_named_or_skipped_and_counted():
    hidden = hf.Dataset.from_dict(dict(image=[Image.new('L', (4, 4), i) for i in range(6)],
                                       label=[0, -1, 1, 0, 1, None]), features=FEATURES)
    dd = hf.DatasetDict(train=hidden, test=hidden)
    with pytest.raises(PictureError, match='2 of 6 rows have no class in the column label: use skip_bad=True'):
        from_hub(dd)
    with pytest.warns(UserWarning, match='2 of 6 rows have no class in the column label and are skipped'):
        dls = from_hub(dd, skip_bad=True)
    assert (dls.train.n, dls.valid.tensors[1][dls.valid.rows].tolist()) == (4, [0, 1, 0, 1])


def test_a_data_set_without_pictures_is_a_table():
    features = hf.Features(dict(size=hf.Value('float32'), kind=hf.ClassLabel(names=['cat', 'dog'])))
    def rows(n):
        columns = dict(size=[.5*i for i in range(n)], kind=[i % 2 for i in range(n)])
        return hf.Dataset.from_dict(columns, features)

    dd = hf.DatasetDict(train=rows(8), test=rows(4))
    dls = from_hub(dd, y='kind', bs=4)
    assert (dls.recipe.kind, dls.classes, dls.train.n, dls.valid.n) == ('table', ['cat', 'dog'], 8, 4)
    assert dls.test([dict(size=1.)]).n == 1
    assert from_hub(dd, y='size').recipe.categories == dict(kind=['cat', 'dog'])
    assert from_hub(hf.DatasetDict(train=rows(8)), y='kind', valid=.25).valid.n == 2


def test_what_cannot_be_used_is_named(monkeypatch):
    table = hf.DatasetDict(train=hf.Dataset.from_dict(dict(a=[1, 2], b=[1, 2])))
    with pytest.raises(TableError, match='a table: say which column to predict with --target, or y=…; it has a, b'):
        from_hub(table)
    unlabelled = hf.DatasetDict(train=split(4).remove_columns('label'))
    with pytest.raises(PictureError, match=r'no column has classes; the data set has image \(Image\): use Data'):
        from_hub(unlabelled)
    with pytest.raises(PictureError, match='image is no column of classes'): from_hub(unlabelled, y='image')
    with pytest.raises(ValueError, match="no split 'late' next to one for training, only train"):
        from_hub(unlabelled, valid='late')
    hidden = hf.Dataset.from_dict(dict(image=[Image.new('L', (4, 4))]*4, label=[-1]*4), features=FEATURES)
    with pytest.raises(PictureError, match='4 of 4 rows have no class in the column label'):
        from_hub(hf.DatasetDict(train=split(4), test=hidden))
    monkeypatch.setitem(sys.modules, 'datasets', None)
    with pytest.raises(ImportError, match=r"pip install 'miniai-torch\[hf\]'"): from_hub('me/pets')
