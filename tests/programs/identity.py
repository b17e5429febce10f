"Which object is which: names that move between objects, containers and classes of the user's own, views, hooks."
from enum import Flag, auto

import torch
from torch import nn

from miniai import Callback, MixUpCB
from programs import program
from programs.basics import callback, learner, loaders_of, points


class Phase:
    def __init__(self, scale): self.scale, self.steps = scale, 0


class PhaseCB(Callback):
    "Warms up for five batches, then trains with another phase."
    def __init__(self):
        self.warm, self.main = Phase(.1), Phase(1.)
        self.current = self.warm

    def after_loss(self, learn):
        if not learn.training: return
        self.current.steps += 1
        self.current.scale *= .99
        learn.loss = learn.loss*self.current.scale
        if self.warm.steps == 5: self.current = self.main


@program('PhaseCB', lambda learn: {k: vars(x) for k, x in vars(callback(learn, PhaseCB)).items()}, stop=('train', 1, 2))
def named_phases():
    "an attribute that names one object, then another"
    return learner(PhaseCB())


def double(x): return x*2
def half(x): return x/2
def same(x): return x


class RotateCB(Callback):
    "Takes turns with three functions."
    def __init__(self): self.functions = [double, half, same]
    def before_batch(self, learn):
        if not learn.training: return
        learn.batch = self.functions[0](learn.batch[0]), learn.batch[1]
        self.functions.append(self.functions.pop(0))


@program('RotateCB', stop=('train', 1, 2))
def rotated_functions():
    "a list of functions whose order changes"
    return learner(RotateCB())


class LayerStats:
    def __init__(self): self.mean = 0.


class StatsByLayerCB(Callback):
    "Keeps a running mean of each layer's gradient, by the layer, and shrinks the gradient by it."
    def before_fit(self, learn): self.stats = {m: LayerStats() for m in learn.model if isinstance(m, nn.Linear)}
    def after_backward(self, learn):
        for m, s in self.stats.items():
            s.mean = .9*s.mean + .1*m.weight.grad.abs().mean().item()
            m.weight.grad /= 1 + s.mean


@program('StatsByLayerCB', stop=('train', 1, 2))
def stats_by_layer():
    "a dict whose keys are layers"
    return learner(StatsByLayerCB())


class Ring(list):
    "The last four losses, in turn."
    def __init__(self):
        super().__init__([1.]*4)
        self.at = 0

    def put(self, x):
        self[self.at] = x
        self.at = (self.at + 1) % 4


class RingCB(Callback):
    def __init__(self): self.ring = Ring()
    def after_loss(self, learn):
        if not learn.training: return
        self.ring.put(learn.loss.item())
        learn.loss = learn.loss*(1 + self.ring[0]/10)


@program('RingCB', lambda learn: dict(ring=[*callback(learn, RingCB).ring], at=callback(learn, RingCB).ring.at),
         stop=('train', 1, 2))
def ring_buffer():
    "a subclass of list with an attribute"
    return learner(RingCB())


class Settings(dict): __getattr__ = dict.__getitem__


class SettingsCB(Callback):
    def __init__(self): self.settings = Settings(scale=1.)
    def after_loss(self, learn):
        if not learn.training: return
        learn.loss = learn.loss*self.settings.scale
        self.settings['scale'] *= .95


@program('SettingsCB', stop=('train', 1, 2))
def attribute_dict():
    "a subclass of dict that looks attributes up in itself"
    return learner(SettingsCB())


class Tricks(Flag):
    SCALE = auto()
    SHIFT = auto()


class TricksCB(Callback):
    "Turns on one trick after the other."
    def __init__(self): self.on = Tricks(0)
    def before_batch(self, learn):
        if not learn.training: return
        if learn.iter == 1: self.on |= Tricks.SCALE
        if learn.iter == 3: self.on |= Tricks.SHIFT
        x = learn.batch[0]*(.9 if Tricks.SCALE in self.on else 1) + (.1 if Tricks.SHIFT in self.on else 0)
        learn.batch = x, learn.batch[1]


@program('TricksCB', lambda learn: dict(on=callback(learn, TricksCB).on.value), stop=('train', 0, 3))
def flags():
    "a combination of flags"
    return learner(TricksCB())


class RowsCB(Callback):
    "Pulls a row of the first layer, held as a view, towards zero."
    def before_fit(self, learn): self.row = learn.model[0].weight.data[0]
    def after_step(self, learn): self.row *= .9


@program('RowsCB', stop=('train', 1, 2))
def view_of_a_row():
    "a view into a weight"
    return learner(RowsCB())


class AveragedParametersCB(Callback):
    "Keeps an average on each parameter itself, and moves towards it."
    def after_step(self, learn):
        for p in learn.model.parameters():
            p.average = .9*getattr(p, 'average', p.detach().clone()) + .1*p.detach()
            p.data.lerp_(p.average, .1)


@program('AveragedParametersCB', stop=('train', 1, 2))
def attributes_of_parameters():
    "an attribute on parameters"
    return learner(AveragedParametersCB())


class FadingMixUpCB(Callback):
    def after_batch(self, learn):
        if learn.training: callback(learn, MixUpCB).alpha *= .8


@program('FadingMixUpCB|MixUpCB', lambda learn: dict(alpha=callback(learn, MixUpCB).alpha), stop=('train', 1, 2))
def fading_mixup():
    "an option of the library's callback that changes"
    return learner([MixUpCB(.4), FadingMixUpCB()])


def hooked(counter):
    def hook(module, inputs, output):
        counter['n'] += 1
        return output*(1 + counter['n']/1000)
    return hook


@program('hook|model', stop=('train', 1, 2))
def hook_with_a_counter():
    "a forward hook whose closure counts"
    learn = learner()
    learn.model[0].register_forward_hook(hooked(dict(n=0)))
    return learn


class Noisy(list):
    "Samples with new noise each time."
    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return x + .1*torch.randn_like(x), y


@program('Noisy', stop=('train', 1, 2))
def dataset_is_a_list():
    "a dataset that is a subclass of list and draws in __getitem__"
    return learner(dls=loaders_of(Noisy(zip(*points(), strict=True))))


class LevelCB(Callback):
    "Its class holds a callable object with a state."
    class Level:
        def __init__(self): self.n = 0
        def __call__(self):
            self.n += 1
            return 1/(1 + self.n/20)
    level = Level()

    def after_loss(self, learn):
        if learn.training: learn.loss = learn.loss*self.level()


@program('LevelCB|Level', stop=('train', 1, 2))
def callable_in_a_class():
    "a callable class attribute"
    return learner(LevelCB())
