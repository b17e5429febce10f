"Checkpoints of miniai 0.2 in the form of today."
from typing import Any

from torch import nn

__all__ = ['is_old', 'in_todays_form']


def is_old(state: dict[str, Any]) -> bool:
    "Was this state saved by miniai 0.2?"
    return 'fingerprint' in state


def in_todays_form(state: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    "What miniai 0.2 saved, as `restore` needs it. ValueError, naming them, for parts that it saved by number only."
    numbered = [nm for nm in ('loss', 'extras', 'other_params', 'generators') if state[nm]]
    numbered += ['loaders' for s in state['loaders'] if s['generators'] or s['data_generators'] or any(s['attributes'])]
    if numbered: raise ValueError(f"the checkpoint is of miniai {state['fingerprint']['miniai']} and holds "
                                  f"{', '.join(numbered)} in an old form: finish the run with that version")
    training = [nm for nm, m in model.named_modules() if model.training != (nm in state['other_mode'])]
    objects = {'learn.model': dict(training=training, **{k: state[k] for k in ('buffers', 'grads', 'frozen')})}
    versions = {k: state['fingerprint'][k] for k in ('miniai', 'torch', 'device', 'threads')}
    begun = state['begun'] and _data(state['begun'])
    return dict(position=state['position'], versions=versions, begun=begun, model=state['model'], opt=state['opt'],
                history=state['history'], objects=objects, settings={}, shapes={}) | _data(state, _records(state))


def _records(state: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for nm, s in state['records'].items():
        path = f"learn.cbs.{nm.removesuffix(' 1')}"
        if 'schedule' in s: found[f'{path}.schedo'] = s['schedule']
        if nm.startswith('MetricsCB '):
            found |= {f'{path}.loss' if k == 'loss' else f'{path}.metrics[{k!r}]': x for k, x in s.items()}
        else: found[path] = {k: x for k, x in s.items() if k != 'schedule'}
    return found


def _data(state: dict[str, Any], states: dict[str, Any] | None = None) -> dict[str, Any]:
    paths = [f'learn.dls.{nm}' for nm in ('train', 'valid')]
    loaders = dict(zip(paths, state['loaders'], strict=False))
    running = [p for p, s in loaders.items() if s['workers_running']]
    return dict(random=state['random'], states=states or {}, running=running,
                attributes={p: dict(epoch=s['epoch']) for p, s in loaders.items() if s['epoch'] is not None})
