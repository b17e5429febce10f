"The rules about training: layers, gradients, steps and groups. Others are in loss_verdicts and data_verdicts."
import math
from typing import Any

from miniai.diagnosis.verdict import Facts, known, last, mean_of, median_of, of_size, percent, rule, since_when

__all__: list[str] = []

Found = list[dict[str, Any]] | None


@rule('dead layer', 0.5, 'half of the units; Lu et al. 2019, Dying ReLU')
def dead_layer(f: Facts, limit: float) -> Found:
    watched = {nm: v for nm, v in f.layers.items() if len(known(v['dead'])) >= 3}
    found = {nm: min(last(v['dead'], 3)) for nm, v in watched.items()}
    return _in_layers(f, found, 'dead', limit, "of the units are 0 for every sample",
                      "Lower the learning rate, check initial weights and biases, or take an activation that cannot "
                      "die, such as GeneralRelu(leak=0.1).") if watched else None


@rule('saturated layer', 0.6, 'most of the outputs where the slope is below a tenth; Glorot & Bengio 2010')
def saturated_layer(f: Facts, limit: float) -> Found:
    watched = {nm: v for nm, v in f.layers.items() if len(known(v['saturated'])) >= 3 and known(v['gradient'])}
    found = {nm: min(last(v['saturated'], 3)) for nm, v in list(watched.items()) if nm != next(reversed(f.layers))}
    return _in_layers(f, found, 'saturated', limit, "of the outputs are at the flat ends",
                      "Use smaller initial weights, a norm before it, a lower rate, or a ReLU.") if watched else None


def _in_layers(f: Facts, found: dict[str, float], figure: str, limit: float, what: str, do: str) -> list[dict]:
    "A verdict for each layer whose value is above the limit. In those with weights, the inputs were watched."
    bad = {nm: x for nm, x in found.items() if x >= limit}
    since = {nm: since_when(f, f.layers[nm][figure], lambda x: x >= limit) for nm in bad}
    words = {nm: what.replace('units', 'inputs') if _has_weights(f.layers[nm]) else what for nm in bad}
    return [dict(where=nm, value=x, since=since[nm], do=do, certain='sure' if x >= 0.9 else 'likely',
                 says=f"{nm or 'the model'}: {percent(x)} {words[nm]} since batch {since[nm]}.")
            for nm, x in bad.items()]


def _has_weights(layer: dict[str, Any]) -> bool: return 'Linear' in layer['kind'] or 'Conv' in layer['kind']


def _gradient_profile(f: Facts) -> tuple[str, float, str, float] | None:
    "The first and the last layer of a kind, each with the median norm of its gradient in the last samples."
    layers = {nm: v for nm, v in f.layers.items() if known(v['gradient'])}
    acts = [nm for nm, v in layers.items() if not _has_weights(v)]
    names = acts if len(acts) >= 3 else [] if f.setup.get('has_norms', True) else list(layers)
    if len(names) < 3: return None
    first, end = names[0], names[-1]
    norms = [median_of(last(layers[nm]['gradient'], 8)) for nm in (first, end)]
    return first, norms[0], end, norms[1]


@rule('vanishing gradients', 1e-3, 'the norm should be about the same in all layers; Glorot & Bengio 2010')
def vanishing_gradients(f: Facts, limit: float) -> Found:
    profile = _gradient_profile(f)
    if profile is None or len(f.batches) < 3: return None
    first, g, end, g_end = profile
    ratio = g/g_end if g_end else 1.
    return [dict(where=first, value=ratio, certain='sure' if ratio < limit/30 else 'likely',
                 says=f"The gradient is {g_end:.1e} at {end} and {g:.1e} at {first}: it shrinks by {1/ratio:.0e}.",
                 do="Use ReLUs instead of sigmoids, Kaiming initialization, norms, or residual connections."
                 )] if 0 < ratio < limit else []  # at 0 a layer is dead or cut off


@rule('exploding gradients', 50., 'times; they should be about the same in all layers, as in Glorot & Bengio 2010')
def exploding_gradients(f: Facts, limit: float) -> Found:
    profile, norms, growth = _gradient_profile(f), known(f.run.get('gradient_norm', ())), _growth(f)
    if not norms and growth is None: return None
    do = "Use smaller initial weights (Kaiming's) or norms, clip gradients (clip_norm=1.), lower the rate."
    if profile and profile[1] > limit*profile[3] > 0:
        first, g, end, g_end = profile
        return [dict(where=first, value=g/g_end, do=do,
                     says=f"The gradient is {g_end:.1e} at {end} and grows to {g:.1e} at {first}.")]
    if growth and growth[0] > limit:
        return [dict(where=growth[1], value=growth[0], since=0, do=do,
                     says=f"Activations grow {growth[0]:.0f} times from {growth[2]} to {growth[1]}, and gradients with "
                          f"them.")]
    i = norms.index(max(norms)) if norms else 0
    jump, at = norms[i]/median_of(norms[:i]) if i > 1 and median_of(norms[:i]) else 1., f.batches[i]
    failed = any(not x < f.scale for x in f.losses[at:at + 10])  # or NaN; near a loss of 0 all gradients are tiny
    return [dict(value=jump, since=at, certain='possible', do=do,
                 says=f"The gradient norm was {norms[i]:.2g} in batch {at}, {jump:.0f} times its median before.")
            ] if jump > 20*limit and failed else []


def _growth(f: Facts) -> tuple[float, str, str] | None:
    "How much larger outputs of hidden layers are at the end than at the front in the first sample, and their names."
    found = {nm: v['std'][0] for nm, v in f.layers.items() if v['std'] and v['std'][0] and 'BatchNorm' not in v['kind']}
    names = list(found)[:-1]
    if len(names) < 3: return None
    top = max(names, key=found.get)
    return found[top]/found[names[0]], top, names[0]


def _usual_step(f: Facts) -> float:
    "The usual |update|/|weight|: 1e-3 (Karpathy, CS231n); signs and orthogonal updates move every element alike."
    return 2e-3 if f.setup.get('family') == 'sign' else 1e-3


@rule('rate too high', 20., 'times the usual |update|/|weight|, and a loss that rises; Karpathy, CS231n')
def rate_too_high(f: Facts, limit: float) -> Found:
    ratios, losses = known(f.run.get('update', ())), known(f.losses)
    broke = len(losses) < len(f.losses)
    if len(losses) < (2 if broke else 5) or not ratios: return None
    ratio, start, peak = max(ratios), max(losses[0], f.baseline or 0.), max(_means_of_three(losses))
    end = mean_of(losses[-max(5, len(losses)//5):])
    diverged = broke and max(losses[-3:]) > 3*max(min(losses), f.baseline or 0.)
    rose = peak > (5. if len(losses) < 20 else 1.03 if ratio > 10*limit*_usual_step(f) else 1.15)*start
    failed = rose and end > 0.6*(f.baseline or start)
    thrown = ratio > 1 and peak > 1.5*start  # steps larger than the weights, whatever came after
    if not (diverged or failed or thrown) or ratio < limit*_usual_step(f): return []
    return [dict(value=ratio/_usual_step(f),
                 says=f"The loss rose to {peak:.3g} and is {'not finite' if broke else f'{end:.3g}'} now; a step "
                      f"changes weights by up to {of_size(ratio)}.",
                 do="Lower the rate by 3 to 100 times; learn.lr_find() suggests one.",
                 certain='sure' if ratio > 10*limit*_usual_step(f) else 'likely')]


def _means_of_three(losses: list[float]) -> list[float]:
    return [sum(losses[i:i + 3])/3 for i in range(max(1, len(losses) - 2))]


@rule('rate too low', 0.5, 'times the first loss, with steps a fifth of the usual ones or smaller; CS231n')
def rate_too_low(f: Facts, limit: float) -> Found:
    ratios, end = known(f.run.get('update', ())), f.window(0.9, 1)
    if not f.is_late or not ratios or end is None: return None
    ratio, start = sorted(ratios)[len(ratios)*3//4], f.window(0, 0.05)
    weights = [_gets_none(v) for nm, v in f.parameters.items() if 'weight' in nm]
    if sum(weights) > len(weights)/2: return []  # what is left of their steps is weight decay
    if not 0 < ratio < _usual_step(f)/5 or end < limit*start: return []
    kind = next(iter(f.setup.get('short_floats', {}).values()), None)
    return [dict(value=ratio, says=f"A step changes weights by only {percent(ratio)} of their size, and the loss went "
                                   f"from {start:.3g} to {end:.3g}.",
                 do=_keep_bits(kind) if kind else "Raise the rate; learn.lr_find() suggests one.",
                 certain='sure' if ratio < 2e-5 else 'likely')]


@rule('warm-up too short', 1.1, 'times the first loss, in the first tenth of the fit; Goyal et al. 2017')
def warm_up_too_short(f: Facts, limit: float) -> Found:
    rates, updates, n = known(f.run.get('lr', ())), known(f.run.get('update', ())), len(f.losses)
    if not f.is_late or n < 100 or not rates or not updates or rates[0] < 0.3*max(rates): return None
    start, end = max(f.losses[0], f.baseline or 0.), f.window(0.8, 1)
    peak, ratio = max(_means_of_three(known(f.losses[:n//10]))), max(updates[:max(5, len(updates)//5)])
    return [dict(value=peak/start, since=0, certain='possible',
                 says=f"The loss rose from {start:.3g} to {peak:.3g} in the first {n//10} batches, at full rate, with "
                      f"steps that change weights by up to {of_size(ratio)}.",
                 do="Let the rate rise over the first few hundred batches: fit_one_cycle or warmup_cosine."
                 )] if peak > limit*start and ratio > 0.05 and end is not None and end < start else []


@rule('clipping always', 0.9, 'of the steps; clipping should catch outliers (Pascanu et al. 2013)')
def clipping_always(f: Facts, limit: float) -> Found:
    norms, left, own = (f.run.get('gradient_norm', ()), f.run.get('clipped_norm', ()), f.setup.get('clip_norm'))
    pairs = [(a, b) for a, b in zip(norms, left, strict=True) if a and b is not None]
    if len(pairs) < 6: return None
    clipped = [min(b, own or math.inf)/a < 0.999 for a, b in pairs]
    share, norm = sum(clipped)/len(clipped), median_of(a for a, _ in pairs)
    return [dict(value=share, certain='sure', says=f"Gradients are clipped in {percent(share)} of the steps; their "
                                                   f"norm is usually {norm:.2g}.",
                 do="Raise the limit to two or three times the usual norm, or lower the rate."
                 )] if share >= limit else []


@rule('parameter never moves', 0., 'a gradient in some batch')
def parameter_never_moves(f: Facts, limit: float) -> Found:
    moves = {nm: v for nm, v in f.parameters.items() if len(known(v['moved'])) >= 5}
    if not moves: return None
    usual = median_of(_steepness(v) for v in moves.values()) or 0.  # of a bias before a norm it is a rounding error
    still = [nm for nm, v in moves.items() if nm not in (f.setup.get('left_out') or ()) and
             (_gets_none(v) or (not any(known(v['moved'])) and not 0 < _steepness(v) < 1e-5*usual))]
    if not still: return []
    names = ', '.join(still[:4]) + f' and {len(still) - 4} more'*(len(still) > 4)
    pushed, kind = any(known(moves[still[0]]['gradient'])), f.setup.get('short_floats', {}).get(still[0])
    decays = any(known(moves[still[0]]['moved']))
    why = f"gradients arrive, but steps are 0{f' or rounded away in {kind}' if kind else ''}" if pushed \
        else f"no gradient arrives{', and the steps are only weight decay'*decays}"
    return [dict(where=still[0], value=0., since=0, certain='sure',
                 says=f"{names} {'does' if len(still) == 1 else 'do'} not {'learn' if decays else 'move'}: {why}.",
                 do=_keep_bits(kind) if pushed and kind else
                 "Use it in forward, give its group a rate, remove a detach(), no_grad() or dead layer behind it, "
                 "or freeze it with requires_grad_(False).")]


def _keep_bits(kind: str) -> str:
    "What to do about steps of less than half of the last bit of weights in this short type."
    lost, also = (2e-3, "use an optimizer with rounding='stochastic', ") if kind == 'bfloat16' else (2e-4, '')
    return (f"In {kind} steps below {lost:g} of a weight are lost. Keep weights in float32 and add MixedPrecision(), "
            f"{also}or raise the rate.")


def _gets_none(v: dict[str, list]) -> bool:
    "Whether its gradient was 0 in all samples, of five or more."
    gradients = known(v['gradient'])
    return len(gradients) >= 5 and not any(gradients)


def _steepness(v: dict[str, list]) -> float:
    return max(known(v['gradient']), default=0.)/max(median_of(v['norm']) or 0., 1e-9)


@rule('parameter in no group', 0., 'every parameter that requires a gradient')
def parameter_in_no_group(f: Facts, limit: float) -> Found:
    left_out = f.setup.get('left_out')
    if left_out is None: return None
    names = ', '.join(left_out[:4]) + f' and {len(left_out) - 4} more'*(len(left_out) > 4)
    return [dict(where=left_out[0], value=float(len(left_out)), since=0, certain='sure',
                 says=f"The optimizer was not given {names}.",
                 do="Give it all of model.parameters(), or freeze these with requires_grad_(False)."
                 )] if left_out else []


@rule('decay on norms', 0.2, 'of themselves is what scales lose in the fit; He et al. 2019, Bag of Tricks')
def decay_on_norms(f: Facts, limit: float) -> Found:
    norms, n = f.setup.get('decayed_norms'), len(f.losses)
    if norms is None or not f.setup.get('has_norms') or f.rate is None or not f.done: return None
    name = max(norms, key=norms.get, default='')
    lost = 1 - math.exp(-f.rate*norms.get(name, 0.)*n/f.done)
    return [dict(where=name, value=lost, since=0, certain='likely' if lost >= 0.5 else 'possible',
                 says=f"Weight decay of {norms[name]:g} alone shrinks the {len(norms)} scales and biases of norms by "
                      f"{percent(lost)} in this fit.",
                 do="Exclude norms from weight decay: no_decay_groups(model, wd).")] if lost >= limit else []


@rule('batch norm differs between modes', 0.05, 'of the loss of a constant prediction; Wu & Johnson 2021')
def batch_norm_differs(f: Facts, limit: float) -> Found:
    norms = {nm: v for nm, v in f.layers.items() if len(known(v['stretch'])) >= 3}
    epochs = [e for e in f.epochs if known([e.get('train')]) and known([e.get('valid')])]
    if not norms or not epochs: return None
    if f.variety is not None and f.variety < 0.3: return [dict(
        where=next(iter(norms)), value=f.variety, since=0, certain='likely', do="Shuffle the training data.",
        says=f"A batch has {percent(f.variety)} of the variety of the targets, so its statistics are not those of all "
             f"data, which eval mode uses.")]
    off = {nm: max(median_of(last(v['stretch'], 3)), 5*median_of(last(v['shift'], 3))) for nm, v in norms.items()}
    worst, e = max(off, key=off.get), epochs[-1]
    gap = e['valid'] - e['train']
    if off[worst] < 1 or e['valid'] < 1.5*e['train'] or gap < limit*f.scale: return []
    stretch, shift = (median_of(last(norms[worst][nm], 3)) for nm in ('stretch', 'shift'))
    return [dict(where=worst, value=gap, certain='likely',
                 says=f"{worst}: the running statistics that eval mode uses differ from those of a batch, the mean by "
                      f"{shift:.2g} standard deviations, the variance by a factor of {math.exp(stretch):.1f}; the loss "
                      f"is {e['train']:.3g} in training and {e['valid']:.3g} in validation.",
                 do="Use momentum=0.1, train for more batches, or use the same data and transforms in both modes.")]


@rule('batch too small for batch norm', 8., 'samples; Wu & He 2018, Group Normalization')
def batch_too_small(f: Facts, limit: float) -> Found:
    names, sizes = f.setup.get('batch_norms'), f.data.get('sizes')
    if not names or not sizes: return None
    n = median_of(sizes)
    return [dict(where=names[0], value=n, since=0, certain='likely',
                 says=f"BatchNorm computes statistics from only {n:.0f} samples, in {len(names)} of the layers.",
                 do="Use larger batches, or GroupNorm.")] if n < limit else []
