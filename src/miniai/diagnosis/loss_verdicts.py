"The rules about the loss: not finite, too high at first or in validation, at chance, or misreading outputs."
import math
from typing import Any

from miniai.diagnosis.verdict import Facts, known, last, mean_of, median_of, rule

__all__: list[str] = []

Found = list[dict[str, Any]] | None


@rule('non-finite values', None, 'a finite loss')
def nonfinite_values(f: Facts, limit: None) -> Found:
    if not f.losses: return None
    broken = [i for i, x in enumerate(f.losses) if not math.isfinite(x)]
    if not broken and not f.nonfinite: return _nonfinite_validation(f)
    origin = f.nonfinite or dict(batch=broken[0], where='', what='loss')
    batch = origin['batch'] if not broken else min(broken[0], origin['batch'])
    began, do = _origin(f, origin)
    return [dict(where=origin['where'], since=batch, certain='sure', do=do,
                 says=f"The loss is not finite in batch {batch}: {began}.")]


def _nonfinite_validation(f: Facts) -> list[dict[str, Any]]:
    "The same for a validation loss while losses in training are finite."
    bad = [e for e in f.epochs if e.get('valid') is not None and not math.isfinite(e['valid'])]
    if not bad: return []
    origin, e = f.nonfinite_valid, bad[0]
    began, do = _origin(f, origin) if origin else ('', "Look at the validation data and at each batch's loss.")
    where = f", first in its batch {origin['batch']}: {began}" if origin else ''
    return [dict(where=origin['where'] if origin else '', since=e['batch'], certain='sure', do=do,
                 says=f"The validation loss is not finite after epoch {e['epoch'] + 1}{where}.")]


def _origin(f: Facts, origin: dict[str, Any]) -> tuple[str, str]:
    "In words, where values that are not finite began, and what to do."
    where, what, largest = origin['where'], origin['what'], origin.get('largest') or 0.
    usual = median_of(max(abs(x['low']), abs(x['high'])) for x in f.data.get('inputs', ()) if None not in x.values())
    if what in ('loss', 'output') and usual and largest > 1e4*usual: return (
        f"an input is {largest:.3g}, usual ones are up to {usual:.3g}", "Clean the data: drop or limit such values.")
    began = dict(input="the inputs are not finite already", target="the targets are not finite", loss="it began in the "
                 "loss function, the output of the model was finite", parameter=f"the parameter {where} is not finite",
                 buffer=f"the buffer {where} is not finite", output=f"it began in the output of {where}")
    do = dict(input="Clean the data: drop or fill missing values.", target="Clean the targets.",
              loss="Look for a log, root or division of 0 in the loss.")
    return began[what], do.get(what, "Lower the learning rate, clip gradients (clip_norm=1.), or compute this layer in "
                                     "float32.")


@rule('wrong initial loss', 2.5, 'times the loss of a constant prediction, in a regression 5 times; Karpathy 2019')
def wrong_initial_loss(f: Facts, limit: float) -> Found:
    task, start = f.data.get('task'), mean_of(f.losses[:1])
    if start is None or not task: return None
    c = f.data.get('outputs', 1)
    usual = math.log(max(c, 2)) if task == 'classes' else math.log(2) if task == 'labels' else f.baseline
    if not usual: return None
    what = f'ln {c} = {usual:.2f}' if task == 'classes' else f'{usual:.3g}, the variance of the targets' \
        if task == 'numbers' else 'ln 2 = 0.69'
    most = 2*limit*usual if task == 'numbers' else limit*usual + 0.5
    return [dict(value=start, since=0, certain='sure' if start > 3*limit*usual else 'likely',
                 says=f"The first loss is {start:.3g}; guessing gives {what}.",
                 do="Make the last layer's initial weights smaller, and its bias the mean of the targets; or normalize "
                    "inputs and targets.")] if start > most else []


@rule('stuck at chance', 0.97, 'of the loss of a constant prediction; Karpathy 2019, recipe')
def stuck_at_chance(f: Facts, limit: float) -> Found:
    if not f.is_late or not f.baseline or f.baseline < 0.05: return None
    if f.variety is not None and f.variety < 0.7: return None  # sorted: what was seen is not all
    end = f.window(0.75, 1)
    if end is None or min(end, _best_window(f)) < limit*f.baseline or _learns(f): return []
    return [dict(value=end, since=0, certain='sure' if len(f.losses) > 200 else 'likely',
                 says=f"The training loss is {end:.3g}; predicting the same for all inputs gives {f.baseline:.3g}.",
                 do="Check that the labels belong to the inputs, that gradients reach all layers, and that the rate is "
                    "right: learn.check() and learn.lr_find() help.")]


def _best_window(f: Facts) -> float:
    "The lowest mean loss of a tenth of the batches so far."
    return min((x for i in range(10) if (x := f.window(i/10, (i + 1)/10)) is not None), default=math.inf)


def _learns(f: Facts) -> bool:
    "Whether the share of right classes is clearly above that of the most common class."
    right, counts = last(f.run.get('right', ()), 5), f.data.get('counts')
    return bool(right and counts) and mean_of(right) > max(counts.values())/sum(counts.values()) + 0.1


@rule('softmax before the loss', None, 'cross-entropy takes logits')
def softmax_before_the_loss(f: Facts, limit: None) -> Found:
    twice = f.data.get('softmax_twice')
    if twice is None: return None
    return [dict(certain='sure', since=0, do="Remove the softmax from the end of the model; apply it to predictions.",
                 says="The outputs are probabilities that add up to 1, but the loss takes logits: softmax is applied "
                      "twice.")] if twice else []


@rule('outputs and targets broadcast', None, 'both of the same shape')
def outputs_and_targets_broadcast(f: Facts, limit: None) -> Found:
    if not f.data.get('sizes'): return None
    found = f.data.get('broadcast')
    return [dict(certain='sure', since=0, do="Give both the same shape: targets[:, None], or outputs.squeeze(1).",
                 says=f"Outputs of shape {_shape(found['outputs'])} and targets of shape {_shape(found['targets'])} "
                      f"broadcast to {_shape(found['made'])}: the loss compares outputs with targets of other samples."
                 )] if found else []


def _shape(x: list[int]) -> str: return str(tuple(x))


@rule('validation worse than guessing', 1., 'times the loss of a constant prediction in all epochs')
def validation_worse_than_guessing(f: Facts, limit: float) -> Found:
    epochs = [e for e in f.epochs if known([e.get('valid')]) and known([e.get('train')])]
    if len(epochs) < 2 or not f.baseline or (f.variety is not None and f.variety < 0.7): return None
    best, end = min(e['valid'] for e in epochs), epochs[-1]
    return [dict(value=best/f.baseline, since=epochs[0]['batch'], certain='likely',
                 says=f"The validation loss is {end['valid']:.3g} and was never below {best:.3g}, which is worse than "
                      f"predicting the same for all inputs, {f.baseline:.3g}; the training loss is {end['train']:.3g}. "
                      f"Validation data seem to differ from training data.",
                 do="Compare a batch of each: the meaning of labels, the order of inputs and labels, transforms."
                 )] if best > limit*f.baseline and end['train'] < 0.75*f.baseline else []
