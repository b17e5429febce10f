"""Make the pictures in docs/: curves of a training run on the sample, its results, and examples of each augmentation.

    python docs/make_pictures.py
"""
import random
import shutil
import tempfile
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import torch

from miniai import DataLoaders, TrainLearner, fashion_mnist
from miniai.augment import CutMixCB, MixUpCB, mirror, rand_copy, rand_crop, rand_erase, rand_flip, rand_translate
from miniai.diagnosis.capture import first_train_batch
from miniai.jobs.config import TrainConfig
from miniai.jobs.train import train
from miniai.show.plots import show_image, subplots

HERE = Path(__file__).parent
CLASSES = ['t-shirt', 'trousers', 'pullover', 'dress', 'coat', 'sandal', 'shirt', 'sneaker', 'bag', 'boot']


def training():
    "The curves of a run, how often each class was taken for each other, and the most confident mistakes."
    with tempfile.TemporaryDirectory() as tmp:
        learn = train(TrainConfig(data='sample', out=f'{tmp}/run'))  # as `make train` does without the full set
        shutil.copy(f'{tmp}/run/curves.png', HERE/'training.png')
    learn.dls.classes = CLASSES
    results = learn.results()
    results.plot_confusion().figure.savefig(HERE/'confusion.png', dpi=60)
    results.show_mistakes(8, imsize=1.6)
    plt.gcf().savefig(HERE/'mistakes.png', dpi=60)


def mixed(x, cb):
    learn = TrainLearner(torch.nn.Identity(), DataLoaders([(x, x)], []))
    return first_train_batch(learn, 'before_batch', [cb])[0]


def augmentations():
    "A row per augmentation, with the same eight images in each."
    torch.manual_seed(5)
    random.seed(5)
    x = fashion_mnist(source='sample', quiet=True).x_train[:8, None]/255
    rows = {'original': x, 'mirror': mirror(x), 'rand_flip': rand_flip(x), 'rand_crop': rand_crop(x),
            'rand_translate': rand_translate(x, .2), 'rand_erase': rand_erase(x.clone(), .3, 4),
            'rand_copy': rand_copy(x.clone(), .3, 4),
            'MixUpCB': mixed(x, MixUpCB(4.)), 'CutMixCB': mixed(x, CutMixCB())}
    fig, axs = subplots(len(rows), len(x), imsize=.9, layout='constrained')
    for (name, ims), row in zip(rows.items(), axs, strict=True):
        for im, ax in zip(ims, row, strict=True): show_image(im, ax, cmap='gray', vmin=0, vmax=1)
        row[0].text(-.2, .5, name, transform=row[0].transAxes, ha='right', va='center')
    fig.savefig(HERE/'augment.png', dpi=80)


def main():
    matplotlib.use('agg')
    training()
    augmentations()


if __name__ == '__main__': main()
