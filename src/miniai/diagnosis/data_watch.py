"What is in the data, from a sample of batches: ranges of inputs, labels, repeated rows, and rows of both loaders."
import math
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from miniai.callbacks.mix import CutMixCB, MixUpCB
from miniai.data.loaders import length_of
from miniai.device import first_tensor, is_number, to_scalar
from miniai.diagnosis.layer_watch import part_of, read
from miniai.diagnosis.mismatch import broadcast_of, takes_softmax_twice
from miniai.diagnosis.verdict import mean_of
from miniai.metrics.batch import batch_size, n_inputs, target_slice

__all__ = ['DataWatch', 'find_task', 'differ_by_nature', 'neighbors', 'scores_of', 'targets_of']

COLUMNS, NEIGHBORS, ROWS, MOST_ROWS = 128, 512, 256, 1 << 17  # ROWS of a batch are compared with others
MOST_VALID = 32  # batches of validation inputs
CODES = torch.randint(-2**62, 2**62, (COLUMNS,), generator=torch.Generator().manual_seed(1))


class DataWatch:
    "Collects what a sample of batches holds. `facts` is that as plain numbers."
    def __init__(self) -> None:
        self.facts: dict[str, Any] = dict(counts=Counter(), sizes=[])
        self._rows, self._valid, self._repeats, self._valid_repeats = set(), set(), _Repeats(), _Repeats()
        self._inputs, self._targets, self._kept, self._variety = [], [], 0, []
        self._sums, self._validated, self._earlier = torch.zeros(3, dtype=torch.float64), False, {}
        self._signals = False

    def take_over(self, found: dict[str, Any]) -> None:
        "Continue from what the run found in its first passes before it resumed, as in `summary`."
        self.facts |= {nm: x for nm, x in found.items() if nm == 'rows'}
        self._earlier = {nm: x for nm, x in found.items() if nm != 'rows'}

    def look_at_rows(self, learn: Any) -> None:
        "Before anything transforms it: the codes of a batch's rows, equal for equal rows."
        x = _inputs_of(learn)
        if x is None or x.ndim < 2 or x.is_complex() or not len(x) or x[0].numel() < 4: return
        codes = _codes(x[:ROWS])
        if not learn.model.training:
            if len(self._valid) >= MOST_ROWS: return
            self._valid.update(codes)
            if not self._validated: self._valid_repeats.add(codes)
        elif len(self._rows) < MOST_ROWS:
            self._rows.update(codes)
            self._count_repeats(codes, len(x), length_of(learn.dls.train), learn)

    def _count_repeats(self, codes: list[int], batch_size: int, n: int | None, learn: Any) -> None:
        "In the first of the loader's passes, of `n` batches. An epoch of `fit(steps=…)` may take several."
        if n is None or learn.epoch or learn.iter >= n: return
        self._repeats.add(codes)
        self.facts['rows'] = n*batch_size

    def look_at_batch(self, learn: Any) -> None:
        "What the model gets and predicts: ranges, labels, and some rows of both."
        x, (targets, _) = _inputs_of(learn), targets_of(learn)
        if not self.facts['sizes']: self.facts |= find_task(learn)
        self.facts['sizes'].append(batch_size(learn.batch))
        self._look_at_inputs(x, 'inputs')
        self.look_at_labels(learn)
        if is_number(learn.loss): self._look_at_loss(*targets_of(learn), float(to_scalar(learn.loss)))
        if targets is None or 'task' not in self.facts: return
        self.facts['sequences'] = targets.ndim == 2
        self._add_to_baseline(targets)
        if x is not None and targets.ndim <= 2: self._keep(x, targets)

    def look_at_valid(self, learn: Any) -> None:
        "Note the ranges of validation inputs."
        if len(self.facts.get('valid_inputs', ())) < MOST_VALID: self._look_at_inputs(_inputs_of(learn), 'valid_inputs')

    def _look_at_loss(self, y: Tensor | None, p: Tensor | None, loss: float) -> None:
        "Note whether the loss misreads the outputs of the model."
        if y is None or p is None or not math.isfinite(loss): return
        if (found := broadcast_of(p, y, loss)) is not None: self.facts['broadcast'] = found
        scores = scores_of(p, y) if self.facts.get('task') == 'classes' else None
        twice = None if scores is None else takes_softmax_twice(scores, y, loss)
        if twice is not None: self.facts['softmax_twice'] = twice

    def look_at_labels(self, learn: Any, failed: bool = False) -> None:
        "The range of the labels of classes, and how many classes the predictions have."
        if learn.preds is None or not isinstance(learn.batch, tuple | list): return
        y, p = targets_of(learn)
        p = scores_of(p, y)
        if p is None or y.dtype != torch.int64: return
        y = y[(y != -100) & (y != _ignored(learn))]
        if not failed: y = y[y < p.shape[1]]  # a loss that takes a label without a score leaves it out
        if not y.numel(): return
        facts, (low, high) = self.facts, read([y.min(), y.max()])
        facts['low'], facts['high'] = min(low, facts.get('low', low)), max(high, facts.get('high', high))
        facts['classes'] = p.shape[1]

    def _add_to_baseline(self, y: Tensor) -> None:
        "The loss of the best constant prediction: the entropy of the labels, or the variance of the targets."
        facts, y = self.facts, y.detach()
        if facts['task'] == 'classes':
            counts = Counter(label for label in y.flatten()[:1 << 11].tolist() if label >= 0)
            facts['counts'].update(counts)
            facts['baseline'] = _entropy(facts['counts'])
            self._variety.append(_entropy(counts))
            return
        y = y.float()
        if facts['task'] == 'numbers': self._variety.append(y.var(correction=0).item())
        self._sums += torch.stack([torch.ones_like(y).sum(), y.sum(), y.square().sum()]).double().cpu()
        n, total, squares = self._sums.tolist()
        mean = total/n
        if facts['task'] == 'numbers': facts['baseline'], facts['square'] = max(squares/n - mean**2, 0.), squares/n
        elif 0 < mean < 1: facts['baseline'] = -mean*math.log(mean) - (1 - mean)*math.log(1 - mean)

    def right_share(self, learn: Any) -> float | None:
        "The share of right classes in this batch."
        y, p = targets_of(learn) if self.facts.get('task') == 'classes' else (None, None)
        p = scores_of(p, y)
        return None if p is None else (p.argmax(1) == y).float().mean().item()

    def _look_at_inputs(self, x: Tensor | None, name: str) -> None:
        if x is None or not x.is_floating_point() or x.numel() < 2: return
        piece = part_of(x, 1 << 14).float()
        spread = piece.std(0).square().mean().sqrt() if len(piece) > 1 else piece.new_zeros(())
        mean, std, low, high, spread = read([piece.mean(), piece.std(), piece.min(), piece.max(), spread])
        figures = dict(mean=mean, std=std, low=low, high=high, spread=spread, rows=len(piece))
        self.facts.setdefault(name, []).append(figures)

    def _keep(self, x: Tensor, targets: Tensor) -> None:
        if self._kept >= NEIGHBORS or len(x) != len(targets) or not (x.is_floating_point() and x.ndim > 1): return
        self._signals, rows = x.ndim > 2, x.detach().flatten(1)
        self._inputs.append(rows[:, ::max(1, rows.shape[1]//256)].float().cpu())
        self._targets.append(targets.detach().reshape(len(targets), -1)[:, 0].cpu())
        self._kept += len(x)

    def finish_pass(self, training: bool) -> None:
        """At the end of a pass over training data: whether rows can be equal by chance, and what nearest neighbors say
        about rows seen so far."""
        if not training: self._validated = True
        if not training or self._kept < 64 or 'neighbors' in self.facts: return
        shapes = {x.shape[1] for x in self._inputs}
        if len(shapes) > 1 or self.facts.get('task') not in ('classes', 'numbers'): return
        x, y = torch.cat(self._inputs)[:NEIGHBORS], torch.cat(self._targets)[:NEIGHBORS]
        self.facts['unique'] = differ_by_nature(x, self._signals)
        self.facts['neighbors'] = neighbors(x, y, self.facts['task'])
        self._inputs, self._targets = [], []

    def summary(self) -> dict[str, Any]:
        "All facts, with the share of repeated and of leaked rows."
        shared = len(self._rows & self._valid)
        overlap = dict(shared=shared, train=len(self._rows), valid=len(self._valid))
        facts, variety = self.facts, mean_of(self._variety)
        if variety is not None and facts.get('baseline'): facts['variety'] = variety/facts['baseline']
        now = dict(repeats=self._repeats.found(), valid_repeats=self._valid_repeats.found(), overlap=overlap)
        return facts | {nm: max(self._earlier.get(nm, x), x, key=_extent) for nm, x in now.items()}


def _extent(found: dict[str, int]) -> int:
    "From how many rows this was found."
    return found['seen'] if 'seen' in found else min(found['train'], found['valid'])


class _Repeats:
    "How many pairs of equal rows there are among those seen."
    def __init__(self) -> None: self.counts, self.pairs, self.seen = Counter(), 0, 0
    def found(self) -> dict[str, int]: return dict(pairs=self.pairs, seen=self.seen, different=len(self.counts))

    def add(self, codes: list[int]) -> None:
        for code in codes:
            self.pairs += self.counts[code]
            self.counts[code] += 1
        self.seen += len(codes)


def _entropy(counts: Counter) -> float:
    n = sum(counts.values())
    return -sum(c/n*math.log(c/n) for c in counts.values())


def _codes(x: Tensor) -> list[int]:
    "A whole number for each row, the same for equal rows, from up to 128 of its columns."
    x = x.detach().flatten(1)
    x = x[:, ::-(-x.shape[1]//COLUMNS)]
    if x.is_floating_point(): x = x.float().contiguous().view(torch.int32)
    return (x.long()*CODES[:x.shape[1]].to(x.device)).sum(1).tolist()


def _ignored(learn: Any) -> int:
    "The label that the loss leaves out."
    f = getattr(learn, 'loss_func', None)
    return getattr(f, 'ignore_index', getattr(f, 'keywords', {}).get('ignore_index', -100))


def _inputs_of(learn: Any) -> Tensor | None:
    "The first input that is a tensor. Sparse and nested ones are left out."
    x = first_tensor(learn.batch[:n_inputs(learn)] if isinstance(learn.batch, tuple | list) else learn.batch)
    return None if x is None or x.layout is not torch.strided or x.is_nested else x


def targets_of(learn: Any) -> tuple[Tensor | None, Tensor | None]:
    "The first target that is a tensor, and the first tensor of the predictions."
    targets = first_tensor(learn.batch[target_slice(learn)]) if isinstance(learn.batch, tuple | list) else None
    if targets is not None and not targets.numel(): targets = None
    preds = first_tensor(learn.preds)
    return targets, None if preds is None or preds.is_complex() else preds


def scores_of(p: Tensor | None, y: Tensor | None) -> Tensor | None:
    """The scores of two or more classes in dimension 1, from predictions that have them there, as cross-entropy takes
    them, or in the last dimension, as language models do; None if the shapes fit neither."""
    if p is None or y is None or p.ndim != y.ndim + 1 or p.device != y.device: return None
    if (p.shape[0], *p.shape[2:]) != y.shape: p = p.movedim(-1, 1) if p.shape[:-1] == y.shape else None
    return p if p is not None and p.shape[1] > 1 else None


def find_task(learn: Any) -> dict[str, Any]:
    """The task, 'classes', 'numbers' or 'labels', with the number of outputs, if the loss is cross-entropy, the mean
    square or binary cross-entropy of predictions and targets, by whatever name; else an empty dict."""
    y, p = targets_of(learn)
    if y is None or p is None or not is_number(learn.loss): return {}
    if any(isinstance(cb, MixUpCB | CutMixCB) for cb in learn.cbs): return {}
    p, y = p.detach().float(), y.detach()
    if y.dtype in (torch.int64, torch.uint8):
        p, y = scores_of(p, y), y.long()
        if p is None: return {}
        ok = bool(((y >= 0) & (y < p.shape[1])).any())
        found = [('classes', F.cross_entropy(p, y.where((y >= 0) & (y < p.shape[1]), -100)), 0.1)] if ok else []
    elif p.shape == y.shape and y.is_floating_point() and p.device == y.device:
        y = y.float()
        found = [('numbers', F.mse_loss(p, y), 0.01)]
        if y.min() >= 0 and y.max() <= 1: found += [('labels', F.binary_cross_entropy_with_logits(p, y), 0.01)]
    else: return {}
    loss = float(learn.loss.detach() if isinstance(learn.loss, Tensor) else learn.loss)
    return next((dict(task=task, outputs=p.shape[1] if p.ndim > 1 else 1) for task, x, tolerance in found
                 if math.isfinite(loss) and abs(float(x) - loss) <= tolerance*(abs(loss) + 0.1)), {})


def differ_by_nature(x: Tensor, signals: bool) -> bool:
    """Whether equal rows must be copies, unlike rows of categories and text: in two columns or more, the number of
    values is above half the number of distinct rows, or, in pictures and signals, above four."""
    rows = x.unique(dim=0)
    values = 1 + (rows.sort(0).values.diff(dim=0) != 0).sum(0)
    return int((values > (4 if signals else len(rows)/2)).sum()) > 1


def neighbors(x: Tensor, y: Tensor, task: str) -> dict[str, float]:
    """How well the five nearest neighbors of each row predict its target: for classes the `score` is the share that
    are right, and `chance` that of the most common class; for numbers it is R squared, and chance is 0."""
    x = (x - x.mean(0))/(x.std(0) + 1e-3*x.std() + 1e-9)
    nearest = torch.cdist(x, x).fill_diagonal_(math.inf).topk(5, largest=False).indices
    if task == 'classes':
        right = (y[nearest].mode(1).values == y).float().mean().item()
        return dict(score=right, chance=y.unique(return_counts=True)[1].max().item()/len(y), rows=len(y))
    y = y.float()
    return dict(score=1 - (y[nearest].mean(1) - y).var().item()/max(y.var().item(), 1e-12), chance=0., rows=len(y))
