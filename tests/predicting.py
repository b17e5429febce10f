"Small trained Learners for the tests of inference: pictures, arrays, several inputs, a table."
import torch
import torch.nn.functional as F
from torch import nn

from miniai import AdamW, DataLoaders, MetricsCB, TrainCB, TrainLearner
from miniai.learner import Learner
from miniai.models.by_name import build_model


class Quiet(MetricsCB):
    def _log(self, d): pass


def pixels(n=24, size=(12, 12), channels=1, seed=0):
    g = torch.Generator().manual_seed(seed)
    shape = (n, *size) if channels == 1 else (n, channels, *size)
    x, y = torch.randint(0, 256, shape, generator=g, dtype=torch.uint8), torch.arange(n) % 3
    x[y == 1] //= 3
    return x, y


def picture_loaders(channels=1, **kwargs):
    dls = DataLoaders.from_arrays(*pixels(channels=channels, **kwargs), valid=.25, bs=6, normalize=True)
    dls.classes = ['bag', 'coat', 'shoe']
    return dls


def table_loaders(y='kind'):
    import pandas as pd
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 40, generator=g).tolist()
    df = pd.DataFrame(dict(a=a, b=b, c=['x', 'y']*20, kind=[['no', 'yes'][u > v] for u, v in zip(a, b, strict=True)],
                           value=[100 + 20*u + v for u, v in zip(a, b, strict=True)]))
    df.loc[3, 'a'] = None
    return DataLoaders.from_table(df.drop(columns='value' if y == 'kind' else 'kind'), y, bs=8)


def trained(model, dls, loss_func, n_epochs=1, cls=TrainLearner, cbs=(), **kwargs):
    learn = cls(model, dls, loss_func, 1e-2, [Quiet(), *cbs], AdamW, **kwargs)
    if n_epochs: learn.fit(n_epochs)
    return learn


def named(name='simple', channels=1, n_epochs=1, **options):
    "A Learner of a built-in model for pictures, trained for a little, so that BatchNorm has statistics."
    torch.manual_seed(1)
    dls = picture_loaders(channels, size=(32, 32)) if name == 'resnet' else picture_loaders(channels)
    return trained(build_model(name, dls.recipe.facts, **options), dls, F.cross_entropy, n_epochs)


def tabular(y='kind'):
    torch.manual_seed(1)
    dls = table_loaders(y)
    loss = F.cross_entropy if y == 'kind' else F.mse_loss
    return trained(build_model('table', dls.recipe.facts), dls, loss, 2, Learner, [TrainCB(n_inp=2)])


class Sum(nn.Module):
    "Two inputs, the second of whole numbers."
    def __init__(self):
        super().__init__()
        self.lin, self.emb = nn.Linear(4, 3), nn.Embedding(5, 3)

    def forward(self, a, i): return self.lin(a) + self.emb(i)


def two_inputs():
    torch.manual_seed(1)
    n = 20
    x = torch.randn(n, 4), torch.arange(n) % 5
    dls = DataLoaders.from_arrays(x, torch.arange(n) % 3, bs=5)
    return trained(Sum(), dls, F.cross_entropy, cls=Learner, cbs=[TrainCB(n_inp=2)])


def flat(loss_func, outputs, target, model=None, **kwargs):
    "A Learner on rows of four numbers; `target(x)` are its targets."
    torch.manual_seed(1)
    x = torch.randn(40, 4)
    dls = DataLoaders.from_arrays(x, target(x), bs=10, **kwargs)
    return trained(model or nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, outputs)), dls, loss_func)


def valid_rows(learn):
    "The validation rows as they are kept: inputs, then targets."
    dl = learn.dls.valid
    return [t[dl.rows] if dl.rows is not None else t for t in dl.tensors]


