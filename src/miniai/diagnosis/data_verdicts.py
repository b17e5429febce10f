"The rules about data: inputs, labels, both loaders, the gap between them, and the time data take."
import math
from typing import Any

from miniai.diagnosis.verdict import Facts, known, median_of, percent, rule

__all__: list[str] = []

Found = list[dict[str, Any]] | None


def _inputs(f: Facts, name: str = 'inputs') -> dict[str, float] | None:
    "The median of each figure of the inputs over the sampled batches."
    found = f.data.get(name)
    figures = {k: median_of(x[k] for x in found) for k in found[0]} if found else {}
    return None if None in figures.values() else figures or None


@rule('labels out of range', None, 'from 0 to the number of outputs - 1')
def labels_out_of_range(f: Facts, limit: None) -> Found:
    d = f.data
    if 'low' not in d: return None
    low, high, c = d['low'], d['high'], d['classes']
    return [dict(value=high if high >= c else low, certain='sure', since=0,
                 says=f"Labels go from {low:.0f} to {high:.0f}, but the model has {c} outputs, for 0 to {c - 1}.",
                 do="Map labels to 0, 1, 2, …, or change the number of outputs.")] if high >= c or low < 0 else []


@rule('constant inputs', 1e-3, 'of their size is what inputs differ between samples')
def constant_inputs(f: Facts, limit: float) -> Found:
    x = _inputs(f)
    if not x or x['rows'] < 2: return None
    size = max(abs(x['mean']), x['std'], 1e-12)
    return [dict(value=x['spread']/size, since=0, certain='sure',
                 says=f"The samples of a batch differ by only {percent(x['spread']/size)} of their size.",
                 do="Look at a batch (learn.show_image_batch()): the loader or a transform gives the same input again "
                    "and again.")] if x['spread'] < limit*size else []


@rule('inputs not normalized', 8., 'times the mean 0 and deviation 1 that initializations assume; LeCun et al. 1998')
def inputs_not_normalized(f: Facts, limit: float) -> Found:
    x = _inputs(f)
    if not x or f.setup.get('normalizes_inputs'): return None
    far = x['std'] > limit or abs(x['mean']) > limit or x['std'] < 1/(limit*8) or abs(x['mean']) > limit*x['std']
    return [dict(value=max(abs(x['mean']), x['std']), since=0, certain='likely',
                 says=f"Inputs have mean {x['mean']:.3g} and standard deviation {x['std']:.3g}.",
                 do="Subtract the mean and divide by the deviation of the training data, or begin with a BatchNorm."
                 )] if far and x['spread'] > 0 else []


@rule('validation inputs differ', 3., 'times the deviation of training inputs, or 2 deviations between the means')
def validation_inputs_differ(f: Facts, limit: float) -> Found:
    train, valid = _inputs(f), _inputs(f, 'valid_inputs')
    epochs = [e for e in f.epochs if known([e.get('valid')]) and known([e.get('train')])]
    if not train or not valid or not epochs or not train['std']: return None
    ratio, e = valid['std']/train['std'], epochs[-1]
    apart = not 1/limit <= ratio <= limit or abs(valid['mean'] - train['mean']) > 2*train['std']
    return [dict(value=ratio, since=0, certain='sure' if e['valid'] > 3*e['train'] else 'likely',
                 says=f"Validation inputs have mean {valid['mean']:.3g} and standard deviation {valid['std']:.3g}, "
                      f"training inputs {train['mean']:.3g} and {train['std']:.3g}; the loss is {e['valid']:.3g} in "
                      f"validation and {e['train']:.3g} in training.",
                 do="Normalize and transform the inputs of both loaders in the same way."
                 )] if apart and e['valid'] > 1.5*e['train'] and e['valid'] - e['train'] > 0.1*f.scale else []


@rule('repeated inputs', 3., 'times that a sample comes in one pass, on average')
def repeated_inputs(f: Facts, limit: float) -> Found:
    r, n = f.data.get('repeats'), f.data.get('rows')
    if not r or not n or r['seen'] < 64: return None
    times = 1 + 2*r['pairs']*n/r['seen']**2
    return [dict(value=times, since=0, certain='likely',
                 says=f"Each sample appears about {times:.0f} times in a pass: {r['pairs']} equal pairs in "
                      f"{r['seen']} rows.",
                 do="Check the dataset's index and the sampler, and that the data were not joined with themselves."
                 )] if times >= limit and r['pairs'] >= 10 else []


@rule('validation data in training', 0.05, 'of the validation samples')
def validation_data_in_training(f: Facts, limit: float) -> Found:
    o, n = f.data.get('overlap'), f.data.get('rows')
    repeats = [f.data.get(nm) for nm in ('repeats', 'valid_repeats')]
    if not o or not o['train'] or not o['valid'] or not all(r and r['seen'] for r in repeats): return None
    seen = min(1., o['train']*repeats[0]['seen']/repeats[0]['different']/n) if n else 1.
    share = min(1., o['shared']/o['valid']/seen)
    usual = repeats[0]['seen']*min(2*r['pairs']/r['seen']**2 for r in repeats)  # chance repeats rows of both loaders
    if f.data.get('unique'): usual = 0.  # pictures, signals and numbers were repeated before they were split
    return [dict(value=share, certain='sure' if share > 0.2 else 'likely', since=0,
                 says=f"About {percent(share)} of the validation samples are training samples too: {o['shared']} of "
                      f"{o['valid']} that were compared with {o['train']}.",
                 do="Split again, so that no sample is in both parts: the validation figures are too good."
                 )] if share >= limit and o['shared'] >= 3 and share > 3*usual else []


@rule('unbalanced labels', 10., 'times as many of the most common class as of the rarest; Buda et al. 2018')
def unbalanced_labels(f: Facts, limit: float) -> Found:
    counts, c = f.data.get('counts'), f.data.get('outputs', 0)
    if not counts or f.data.get('task') != 'classes' or not 2 <= c <= 100: return None
    if f.data.get('sequences'): return None  # letters of a text are never balanced
    n = [counts.get(i, 0) for i in range(c)]
    if sum(n) < 20*c or (f.variety or 1.) < 0.7: return None  # sorted: what was seen is not all
    ratio = max(n)/max(min(n), 1)
    return [dict(value=ratio, since=0, certain='sure',
                 says=f"Class {n.index(max(n))} is {percent(max(n)/sum(n))} of the samples, class {n.index(min(n))} "
                      f"{percent(min(n)/sum(n))}.",
                 do="Weight the classes (cross_entropy's weight), sample them equally, and look at figures per class."
                 )] if ratio >= limit else []


@rule('shuffled labels', 2., 'deviations above chance for nearest neighbors; Cover & Hart 1967')
def shuffled_labels(f: Facts, limit: float) -> Found:
    k, valid = f.data.get('neighbors'), [e['valid'] for e in f.epochs if known([e.get('valid')])]
    if not k or not f.baseline or not f.is_late: return None
    error = math.sqrt(k['chance']*(1 - k['chance'])/k['rows']) if k['chance'] else 1.5/math.sqrt(k['rows'])
    above = (k['score'] - k['chance'])/max(error, 1e-9)
    learned = _learned(valid, f.baseline) if valid else (f.window(0.75, 1) or 0) < 0.9*f.baseline
    return [dict(value=above, since=0, certain='likely',
                 says=f"Similar samples do not have similar labels: nearest neighbors predict "
                      f"{percent(max(k['score'], 0))}, and chance {percent(k['chance'])}. What the model learns in "
                      f"training does not help in validation.",
                 do="Check that inputs and labels are in the same order: show a batch with its labels."
                 )] if above < limit and not learned else []


def _learned(valid: list[float], baseline: float) -> bool:
    "Whether validation was ever clearly better than chance. Of few numbers the variance, and so chance, is uncertain."
    return min(valid) < 0.75*baseline or (min(valid) < 0.97*baseline and valid[-1] < 1.2*baseline)


@rule('overfitting', 0.1, 'of the loss of a constant prediction is what validation loses, while training loss falls')
def overfitting(f: Facts, limit: float) -> Found:
    epochs = [e for e in f.epochs if known([e.get('valid')]) and known([e.get('train')])]
    if len(epochs) < 3: return None
    best, end = min(epochs, key=lambda e: e['valid']), epochs[-1]
    recent, unit = min(e['valid'] for e in epochs[-2:]), f.scale or best['valid']
    rises = recent - best['valid'] > limit*unit and recent > 1.15*best['valid'] and 2*end['train'] < end['valid']
    knows_all = end['train'] < 0.1*end['valid'] and end['valid'] - end['train'] > 1.2*limit*unit
    diverged, rise = end['train'] > max(best['train'], 0.1*unit), end['valid']/max(best['valid'], 1e-12)
    return [dict(value=rise, since=best['batch'], certain='sure' if rise > 1.5 else 'likely',
                 says=f"The validation loss was {best['valid']:.3g} after epoch {best['epoch'] + 1} and is "
                      f"{end['valid']:.3g} now; the training loss is {end['train']:.3g}.",
                 do="Use more data or augmentation, weight decay, dropout, a smaller model, or stop there "
                    "(EarlyStoppingCB).")] if (rises or knows_all) and not diverged else []


@rule('underfitting', 0.15, 'is how much more nearest neighbors explain than the model; Cover & Hart 1967')
def underfitting(f: Facts, limit: float) -> Found:
    k, earlier, end = f.data.get('neighbors'), f.window(0.4, 0.6), f.window(0.8, 1)
    if not k or not f.is_late or len(f.losses) < 100 or end is None or not f.baseline: return None
    best = min([end, *known(e.get('valid') for e in f.epochs[-1:])])  # dropout makes training harder
    explained, stands = 1 - best/f.baseline, end > 0.9*earlier
    return [dict(value=explained, certain='likely',
                 says=f"The training loss hardly falls any more and is {end:.3g}; at best the loss is "
                      f"{percent(max(explained, 0.))} below that of a constant prediction, and nearest neighbors "
                      f"among {k['rows']} samples are right for {percent(k['score'])}.",
                 do="Use a wider or deeper model, less weight decay, dropout and augmentation, or a different "
                    "learning rate.")] if stands and k['score'] > explained + limit and end < 0.97*f.baseline else []


@rule('slow data loading', 0.5, 'of the time of training is waiting for data')
def slow_data_loading(f: Facts, limit: float) -> Found:
    waited, worked, n = f.data.get('waited', 0.), f.data.get('worked', 0.), len(f.losses)
    if n < 10 or not worked: return None
    share, each = waited/(waited + worked), waited/n
    return [dict(value=share, certain='sure' if share > 0.7 else 'likely',
                 says=f"{percent(share)} of the time is spent waiting for data, {1000*each:.0f} ms per batch.",
                 do="Use num_workers, a MemoryLoader, smaller files, or transforms on the device."
                 )] if share > limit and each > 2e-3 else []
