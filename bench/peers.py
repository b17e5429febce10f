"""The loops that loop_overhead.py compares with: each trains one epoch with loss, accuracy and a progress bar.

Every function takes (model, batches) and gives an epoch, a function that returns its own seconds: setting up a trainer
is not counted. Those that are not installed raise ImportError when called; bench/requirements.txt lists them.
"""
import logging
import time
import warnings
from contextlib import suppress

import torch
import torch.nn.functional as F


def without_compiled_vision_ops():
    "Some of the peers import torchvision, of which none uses an operator: declare what its build for GPUs misses here."
    lib = torch.library.Library('torchvision', 'FRAGMENT')
    for name in ('nms', 'qnms'):
        with suppress(RuntimeError): lib.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    return lib  # what is declared lasts as long as this


VISION_OPS = without_compiled_vision_ops()


class Batches:
    "Batches as something that can be gone through; Lightning takes a list for a list of loaders."
    def __init__(self, batches): self.batches = batches
    def __iter__(self): return iter(self.batches)
    def __len__(self): return len(self.batches)


def timed(run):
    def epoch():
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    return epoch


def ignite(model, batches):
    from ignite.engine import create_supervised_trainer
    from ignite.handlers import ProgressBar
    from ignite.metrics import Accuracy, Average
    opt = torch.optim.SGD(model.parameters(), 0.01)
    def output(x, y, preds, loss): return preds.detach(), y, loss.item()
    trainer = create_supervised_trainer(model, opt, F.cross_entropy, 'cpu', output_transform=output)
    Accuracy(output_transform=lambda o: o[:2]).attach(trainer, 'accuracy')
    Average(output_transform=lambda o: o[2]).attach(trainer, 'loss')
    ProgressBar().attach(trainer, output_transform=lambda o: dict(loss=o[2]))
    return timed(lambda: trainer.run(batches, max_epochs=1))


def lightning(model, batches):
    import lightning as pl

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.seconds = model, 0.

        def configure_optimizers(self): return torch.optim.SGD(self.parameters(), 0.01)
        def on_train_epoch_start(self): self.started = time.perf_counter()
        def on_train_epoch_end(self): self.seconds = time.perf_counter() - self.started

        def training_step(self, batch, i):
            preds = self.model(batch[0])
            loss = F.cross_entropy(preds, batch[1])
            hits = (preds.argmax(1) == batch[1]).float().mean()
            given = dict(on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch[0]))
            self.log('loss', loss, **given)
            self.log('accuracy', hits, **given)
            return loss

    for name in ('lightning.pytorch', 'lightning.fabric'): logging.getLogger(name).setLevel(logging.ERROR)
    module = Module()
    def epoch():
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            pl.Trainer(max_epochs=1, accelerator='cpu', logger=False, enable_checkpointing=False,
                       enable_model_summary=False).fit(module, train_dataloaders=Batches(batches))
        return module.seconds
    return epoch


def fastai(model, batches):
    import fastai.callback.progress  # which adds its bar to every Learner
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.metrics import accuracy
    from fastai.optimizer import OptimWrapper
    dls = DataLoaders(batches, [], device=torch.device('cpu'))
    def opt_func(params, lr): return OptimWrapper(params, torch.optim.SGD, lr=lr)
    learn = Learner(dls, model, loss_func=F.cross_entropy, opt_func=opt_func, lr=0.01, metrics=accuracy,
                    default_cbs=True, train_bn=True)
    assert fastai.callback.progress.ProgressCallback in map(type, learn.cbs)
    learn.recorder.train_metrics = True
    return timed(lambda: learn.fit(1))


def skorch(model, batches):
    from skorch import NeuralNetClassifier
    from skorch.callbacks import EpochScoring, ProgressBar

    class Net(NeuralNetClassifier):
        def get_iterator(self, dataset, training=False): return batches

    hits = EpochScoring('accuracy', name='train_accuracy', lower_is_better=False, on_train=True)
    net = Net(model, criterion=torch.nn.CrossEntropyLoss, lr=0.01, train_split=None, max_epochs=1,
              callbacks=[('hits', hits), ('bar', ProgressBar())], verbose=0)
    xs, ys = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]).numpy()
    net.initialize()
    return timed(lambda: net.partial_fit(xs, ys))


PEERS = {'Ignite': ignite, 'Lightning': lightning, 'fastai': fastai, 'skorch': skorch}
