"Training batches captured as a CUDA graph and replayed: one launch in place of hundreds."
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain
from types import NoneType
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from miniai.callbacks.compile import CompileCB
from miniai.callbacks.dry_run import patch
from miniai.callbacks.trained import buffers_of, loss_modules, trained_parameters
from miniai.device import map_tensors, tensors_in
from miniai.distributed.ranks import world
from miniai.events import Callback

__all__ = ['GraphCB']

_PHASES = ('predict', 'get_loss', 'backward')
_REFUSED = dict(
    AccumulateCB='adds up the gradients of several batches', MixUpCB='mixes the losses of each batch in its own way',
    CutMixCB='mixes the losses of each batch in its own way', StepInBackwardCB='steps in the backward pass',
    HooksCallback='looks at each forward pass by hooks', HealthCB='looks at layers by hooks',
    ProfileCB='times each phase', AccelerateCB='lets Accelerate run the backward pass')


class GraphCB(Callback):
    """On CUDA, captures forward pass, loss and backward pass of a training batch as a CUDA graph, and replays it for
    all batches of the same shapes: those that come first more than `warm_up` times. Until then batches train as usual,
    so nothing has to be undone. Other shapes, such as a smaller last batch, and validation run without the graph. The
    optimizer's step follows each replay, one launch with an optimizer of miniai, so rates may change at any time.
    `replayed` counts the batches of a fit that were replayed. Elsewhere it does nothing, and says so once.

    A replay runs no Python: numbers that the model reads there, such as the rate of a dropout, stay as they were at the
    capture. If weights move, thaw or change mode, a new graph is captured. ValueError for several processes, hooks on
    modules, callbacks that cannot see every batch, and for a Learner whose `zero_grad` keeps gradients."""
    order, only_shows = 3e9, True  # after all that change a batch
    devices, warm_up = ('cuda',), 3
    _on = _said = False
    _stream = _step = None

    def __init__(self) -> None: self.replayed, self._undo = 0, ExitStack()

    def before_fit(self, learn: Any) -> None:
        self.replayed, self._on, self._seen, self._state = 0, False, Counter(), None
        if not getattr(learn, 'trains', True): return
        self._device = next((p.device for p in learn.model.parameters()), torch.device('cpu'))
        if self._device.type in self.devices:
            _check(learn)
            self._on = True
            if self._device.type == 'cuda': self._stream = torch.cuda.Stream(self._device)
        elif not self._said:
            self._said = True
            warnings.warn(f"GraphCB does nothing on {self._device}: graphs need CUDA", stacklevel=2)

    def before_epoch(self, learn: Any) -> None:
        if not (self._on and learn.model.training): return
        groups = (g['params'] for g in getattr(learn.opt, 'param_groups', ()))
        params = chain(learn.model.parameters(), trained_parameters(learn), *groups)
        self._params = [*{id(p): p for p in params}.values()]
        self._tensors = [*self._params, *buffers_of(learn).values()]
        self._modules = [m for top in (learn.model, *loss_modules(learn).values()) for m in top.modules()]

    def before_batch(self, learn: Any) -> None:
        if not (self._on and learn.model.training): return
        state, kind = self._state_of(learn), self._kind_of(learn.batch)
        if state != self._state: self._step, self._state, self._seen = None, state, Counter()
        if self._step is None and kind is not None:
            if self._seen[kind] == self.warm_up: self._step, self._kind = self._captured(learn), kind
            self._seen[kind] += 1
        if self._step is None or kind != self._kind:
            self._check_zeroed(learn)
            self._undo.enter_context(self._aside())
            return
        for phase in _PHASES: patch(self._undo, learn, phase, partial(getattr(self._step, phase), learn))
        self.replayed += 1

    def cleanup_batch(self, learn: Any) -> None: self._undo.close()

    def cleanup_fit(self, learn: Any) -> None:
        if self._on and not self.replayed and learn.ended_by is None: warnings.warn(
            f"GraphCB replayed no batch: there were no {self.warm_up + 1} training batches of one shape, all on "
            f"{self._device}, in tuples, lists and dicts", stacklevel=2)
        self._on, self._step, self._stream, self._params, self._tensors, self._modules = False, None, None, [], [], []

    def _state_of(self, learn: Any) -> tuple:
        "What a graph was captured for, besides the batch: it reads and writes these addresses."
        kind = self._device.type
        return ([0 if is_lazy(x) else x.data_ptr() for x in self._tensors], [p.requires_grad for p in self._params],
                [m.training for m in self._modules], id(learn.loss_func),
                torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))

    def _kind_of(self, x: Any) -> tuple | None:
        "What batches that use the same graph have in common; None for one that cannot use any."
        if isinstance(x, Tensor):
            fits = type(x) is Tensor and x.device == self._device and x.layout is torch.strided and not x.requires_grad
            return (x.shape, x.stride(), x.dtype) if fits else None
        if isinstance(x, Mapping): kinds = [*x, *map(self._kind_of, x.values())]
        elif isinstance(x, tuple | list): kinds = [*map(self._kind_of, x)]
        else: return (x,) if isinstance(x, NoneType | bool | int | float | str) else None
        return None if None in kinds else (type(x), *kinds)

    def _check_zeroed(self, learn: Any) -> None:
        if any(p.grad is not None and p.grad.any() for p in self._params): raise ValueError(
            f"GraphCB cannot be used with {type(learn).__name__}, whose zero_grad keeps gradients: use a Learner that "
            f"zeroes them, such as TrainLearner")

    def _captured(self, learn: Any) -> '_Step':
        self._check_zeroed(learn)
        try: return _Step(learn, self._params, self._device, self._record)
        except RuntimeError as e:
            e.add_note("GraphCB was capturing the model and the loss. They must not read values from the GPU, as "
                       ".item(), .cpu() and `if tensor:` do, and make tensors there directly. Or leave GraphCB out")
            raise

    def _record(self, f: Callable[[], Any]) -> Callable[[], Any]:
        "What `f` launches, to be launched again: a function that returns what `f` returned, with new values in it."
        graph, device = torch.cuda.CUDAGraph(), self._device
        # thread_local, as other threads may pin memory for a loader meanwhile
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode='thread_local'): out = f()
        def replay() -> Any:
            with torch.cuda.device(device): graph.replay()
            return out
        return replay

    @contextmanager
    def _aside(self) -> Iterator[None]:
        "Within it work is queued on the stream of the capture: libraries and autograd bind what they keep to a stream."
        now = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(now)
        with torch.cuda.stream(self._stream): yield
        now.wait_stream(self._stream)


class _Step:
    "A captured step: the batch in memory that stays where it is, and the three phases by replay."
    def __init__(self, learn: Any, params: list, device: torch.device, record: Callable) -> None:
        self.params, self.device, self.batch = params, device, map_tensors(torch.clone, learn.batch)
        learn.preds = learn.loss = None  # their graph belongs to another stream
        torch.clear_autocast_cache()  # weights cast before the capture would never change
        try: self.replay = record(partial(self._compute, learn, [getattr(learn, phase) for phase in _PHASES]))
        finally: torch.clear_autocast_cache()

    def _compute(self, learn: Any, phases: list[Callable]) -> tuple[tuple, list]:
        "Predictions and loss of the batch, and the gradients. The Learner stays as it was."
        batch, learn.batch = learn.batch, self.batch
        for p in self.params: p.grad = None  # so that gradients are written, not added
        try:
            predict, get_loss, backward = phases
            predict()
            get_loss()
            with torch.autocast(self.device.type, enabled=False): backward()
            return map_tensors(Tensor.detach, (learn.preds, learn.loss)), [p.grad for p in self.params]
        finally:
            learn.batch, learn.preds, learn.loss = batch, None, None
            for p in self.params: p.grad = None

    def predict(self, learn: Any) -> None:
        "Replay the step. Predictions and loss are copies, which callbacks may keep."
        for old, new in zip(tensors_in(self.batch), tensors_in(learn.batch), strict=True): old.copy_(new)
        results, self.grads = self.replay()
        learn.preds, self.loss = map_tensors(torch.clone, results)

    def get_loss(self, learn: Any) -> None: learn.loss = self.loss

    def backward(self, learn: Any) -> None:
        "The gradients are there already."
        for p, g in zip(self.params, self.grads, strict=True):
            if g is not None: p.grad = g


def _check(learn: Any) -> None:
    "ValueError for what a replay would leave out."
    found = [f"{type(cb).__name__} {why}" for cb in learn.cbs for kind in type(cb).__mro__
             if (why := _REFUSED.get(kind.__name__))]
    found += [f"{type(cb).__name__}.{e} may change what the replay has computed (if it does not, set only_shows = True)"
              for cb in learn.cbs for e in ('after_predict', 'after_loss')
              if not getattr(cb, 'only_shows', False) and _is_users(getattr(cb, e, None))]
    found += ["CompileCB captures graphs itself in this mode" for cb in learn.cbs if isinstance(cb, CompileCB)
              and cb.options.get('mode') in ('reduce-overhead', 'max-autotune')]
    hooked = [repr(nm) for nm, m in learn.model.named_modules() if any(map(_is_users, _hooks(m)))]
    if hooked: found.append(f"a replay does not call the hooks on {', '.join(hooked[:4])}")
    if world() > 1: found.append("several processes average their gradients")
    if found: raise ValueError(f"GraphCB replays batches without Python, but {'; '.join(found)}: remove one or the "
                               f"other")


def _hooks(m: Any) -> list:
    dicts = m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks
    return [*chain.from_iterable(d.values() for d in dicts)]


def _is_users(f: Any) -> bool:
    return f is not None and not (getattr(f, '__module__', None) or '').startswith(('torch.', 'miniai.'))
