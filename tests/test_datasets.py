"The names that user code takes from miniai.datasets."
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import miniai.data.loaders
import miniai.datasets
import miniai.show.plots

NAMES = ['inplace', 'collate_dict', 'DataLoaders', 'show_image', 'subplots', 'get_grid', 'show_images']


def test_a_star_import_gives_the_names_of_the_api():
    names = {}
    exec('from miniai.datasets import *', names)
    assert set(NAMES) <= set(names)
    assert sorted(miniai.datasets.__all__) == sorted(NAMES)


def test_each_name_is_the_library_s_one_of_that_name():
    for name in NAMES:
        home = miniai.data.loaders if hasattr(miniai.data.loaders, name) else miniai.show.plots
        assert getattr(miniai.datasets, name) is getattr(home, name)


@settings(max_examples=10)
@given(st.integers(1, 8))
def test_a_batch_from_a_dict_dataset_can_be_shown(n):
    ds = type('HasFeatures', (), dict(features=dict(image=None, label=None)))
    items = [dict(image=torch.full((1, 6, 6), float(i)), label=i) for i in range(n)]
    images, labels = miniai.datasets.collate_dict(ds)(items)
    miniai.datasets.show_images(images, titles=[str(y.item()) for y in labels], imsize=.5)
    import matplotlib.pyplot as plt
    shown = [ax for ax in plt.gcf().axes if ax.images]
    assert [ax.get_title() for ax in shown] == [str(i) for i in range(n)]
    assert [ax.images[0].get_array()[0, 0] for ax in shown] == list(range(n))
    plt.close()
