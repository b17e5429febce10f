"Programs whose models keep more than parameters."
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from miniai import Callback, TrainLearner
from programs import program
from programs.basics import callback, convnet, images, learner, loaders, mlp


class Tempered(nn.Module):
    "Logits over a temperature, a plain float."
    def __init__(self):
        super().__init__()
        self.body, self.temperature = mlp(), 4.0
    def forward(self, x): return self.body(x)/self.temperature


class CoolCB(Callback):
    def after_batch(self, learn):
        if learn.training: learn.model.temperature *= 0.9


@program('temperature|Tempered', lambda learn: dict(t=learn.model.temperature))
def temperature():
    "a temperature in the model, changed by a callback"
    return learner(CoolCB(), Tempered())


class StepCounting(nn.Module):
    "Counts its own forward passes, and warms up its output."
    def __init__(self):
        super().__init__()
        self.body, self.calls = mlp(), 0
    def forward(self, x):
        if self.training: self.calls += 1
        return self.body(x)*min(1., self.calls/10)


@program('StepCounting|calls', lambda learn: dict(calls=learn.model.calls))
def counting_forward():
    "a counter in forward"
    return learner(model=StepCounting())


class RunningCenter(nn.Module):
    "A non-persistent buffer: in no state_dict."
    def __init__(self):
        super().__init__()
        self.body = mlp()
        self.register_buffer('center', torch.zeros(6), persistent=False)
    def forward(self, x):
        if self.training: self.center = 0.8*self.center + 0.2*x.detach().mean(0)
        return self.body(x - self.center)


@program('RunningCenter|center', lambda learn: dict(center=learn.model.center))
def non_persistent_buffer():
    "a non-persistent buffer"
    return learner(model=RunningCenter())


class LazyScale(nn.Module):
    "A buffer that is made with the first batch."
    def __init__(self):
        super().__init__()
        self.body = mlp()
        self.register_buffer('scale', None)
    def forward(self, x):
        if self.scale is None: self.scale = x.detach().std(0)
        elif self.training: self.scale = 0.9*self.scale + 0.1*x.detach().std(0)
        return self.body(x/self.scale)


@program('LazyScale|scale', lambda learn: dict(scale=learn.model.scale), expect='identical|reported')
def lazy_buffer():
    "a buffer made with the first batch"
    return learner(model=LazyScale())


class Growing(nn.Module):
    "A ModuleDict that gets a module when its key is first needed; its weights are fixed random features."
    def __init__(self):
        super().__init__()
        self.body, self.features = mlp(), nn.ModuleDict()
    def forward(self, x):
        key = str(len(x))
        if key not in self.features: self.features[key] = nn.Linear(6, 6)
        return self.body(self.features[key](x))


@program('Growing|features', expect='identical|reported')
def growing_module_dict():
    "a ModuleDict that grows with the first batch"
    return learner(model=Growing())


class TruncatedBPTT(TrainLearner):
    "Carries the hidden state of an RNN from batch to batch."
    hidden = None
    def predict(self):
        out, h = self.model.rnn(self.batch[0].view(-1, 2, 3), self.hidden if self.training else None)
        if self.training: self.hidden = h.detach()
        self.preds = self.model.head(out[:, -1])


@program('TruncatedBPTT|hidden', lambda learn: dict(hidden=learn.hidden))
def rnn_hidden_state():
    "an RNN's hidden state carried between batches in the Learner"
    model = nn.ModuleDict(dict(rnn=nn.GRU(3, 8, batch_first=True), head=nn.Linear(8, 3)))
    return learner(model=model, cls=TruncatedBPTT)


class StatefulRNN(nn.Module):
    "Carries its hidden state itself."
    def __init__(self):
        super().__init__()
        self.rnn, self.head, self.h = nn.RNN(3, 8, batch_first=True), nn.Linear(8, 3), None
    def forward(self, x):
        out, h = self.rnn(x.view(-1, 2, 3), self.h if self.training else None)
        if self.training: self.h = h.detach()
        return self.head(out[:, -1])


@program('StatefulRNN|h', lambda learn: dict(h=learn.model.h))
def rnn_state_in_model():
    "a hidden state as a plain attribute of the model"
    return learner(model=StatefulRNN())


@program('spectral|norm')
def spectral_normed():
    "spectral_norm"
    return learner(model=nn.Sequential(spectral_norm(nn.Linear(6, 16)), nn.ReLU(), nn.Linear(16, 3)))


@program('weight|norm')
def weight_normed():
    "weight_norm"
    return learner(model=nn.Sequential(weight_norm(nn.Linear(6, 16)), nn.ReLU(), nn.Linear(16, 3)))


@program('BatchNorm1d')
def cumulative_batchnorm():
    "BatchNorm with momentum None"
    norm = nn.BatchNorm1d(16, momentum=None)
    return learner(model=nn.Sequential(nn.Linear(6, 16), norm, nn.ReLU(), nn.Linear(16, 3)))


class VectorQuantizer(nn.Module):
    "A codebook in plain tensors, updated by moving averages, reset by usage counts in a list."
    def __init__(self, n=8, dim=16):
        super().__init__()
        self.codes, self.usage = torch.randn(n, dim), [0]*n
    def forward(self, h):
        i = torch.cdist(h.detach(), self.codes).argmin(1)
        if self.training:
            for k, v in zip(i.tolist(), h.detach(), strict=True):
                self.usage[k] += 1
                self.codes[k].lerp_(v, 1/(1 + self.usage[k]))
        return h + (self.codes[i] - h).detach()*0.5


@program('VectorQuantizer|codes|usage', lambda learn: dict(codes=learn.model[1].codes, usage=learn.model[1].usage))
def vector_quantizer():
    "a codebook in plain tensors of a module"
    return learner(model=nn.Sequential(nn.Linear(6, 16), VectorQuantizer(), nn.Linear(16, 3)))


class HookStatsCB(Callback):
    "A forward hook collects the mean activation; it penalises large ones."
    def before_fit(self, learn):
        self.ema = 0.
        self.handle = learn.model[0].register_forward_hook(self.hook)
    def hook(self, module, inp, out):
        if module.training: self.ema = 0.9*self.ema + 0.1*out.detach().abs().mean().item()
    def after_loss(self, learn):
        if learn.training: learn.loss = learn.loss*(1 + self.ema)
    def cleanup_fit(self, learn): self.handle.remove()


@program('HookStatsCB|ema', lambda learn: dict(ema=callback(learn, HookStatsCB).ema))
def hook_statistics():
    "statistics collected by a forward hook that a callback registers"
    return learner(HookStatsCB())


class PruneCB(Callback):
    "Keeps a mask of weights per layer, made after the first epoch."
    masks = None
    def after_epoch(self, learn):
        if learn.training and self.masks is None:
            self.masks = {k: p.abs() > p.abs().median() for k, p in learn.model.named_parameters() if p.ndim > 1}
    @torch.no_grad()
    def after_step(self, learn):
        for k, p in learn.model.named_parameters():
            if self.masks and k in self.masks: p *= self.masks[k]


@program('PruneCB|masks', lambda learn: dict(masks=callback(learn, PruneCB).masks), stop=('train', 1, 2))
def pruning_masks():
    "boolean masks made after the first epoch"
    return learner(PruneCB())


class SwapActivationCB(Callback):
    "Replaces a layer of the model after the first epoch."
    def after_epoch(self, learn):
        if learn.training and learn.epoch == 0: learn.model[1] = nn.Tanh()


@program('SwapActivationCB|ReLU|Tanh', stop=('train', 1, 1), expect='reported')
def replaced_layer():
    "a callback that replaces a layer of the model"
    return learner(SwapActivationCB())


class MomentumScheduleCB(Callback):
    "Lowers BatchNorm's momentum with each batch."
    def after_batch(self, learn):
        if learn.training: learn.model[1].momentum *= 0.8


@program('momentum|BatchNorm2d', lambda learn: dict(m=learn.model[1].momentum))
def batchnorm_momentum():
    "BatchNorm's momentum, lowered with each batch"
    return learner(MomentumScheduleCB(), convnet(), loaders(images))
