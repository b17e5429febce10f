"The job that writes a run as a Python script: the way from the command line into Python."
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from miniai import checkpoint
from miniai.data.recipe import Recipe
from miniai.inference.model_file import MODEL_FILE
from miniai.jobs.build import build_optimizer
from miniai.jobs.config import ConfigError, TrainConfig, parse_options
from miniai.jobs.data import columns_of
from miniai.jobs.registry import DATA, MODELS, OPTIMIZERS
from miniai.optim.schedules import has_momentum

__all__ = ['ScriptConfig', 'write_script', 'script_of']


@dataclass
class ScriptConfig:
    "Write a short Python script that trains to the same weights as a run."
    run: Path
    """The folder of a run."""
    path: Path
    """The script to write."""


def write_script(config: ScriptConfig) -> None:
    "Write the script. ConfigError for a folder without a finished run, or a script that exists."
    if config.path.exists(): raise ConfigError(f"{config.path} exists: choose another name")
    options, model = config.run/'config.toml', config.run/MODEL_FILE
    if not (options.is_file() and model.is_file()):
        raise ConfigError(f"{config.run} is not the folder of a finished run")
    config.path.write_text(script_of(TrainConfig.from_toml(options), checkpoint.load(model)), 'utf-8')
    print(f'wrote {config.path}')


SCHEDULES = {  # imports, and the schedule of an optimizer for a number of steps
    'onecycle': ('torch.optim.lr_scheduler: OneCycleLR',
                 'OneCycleLR(opt, max_lr={lr!r}, total_steps=steps{fixed})'),
    'cosine': ('torch.optim.lr_scheduler: CosineAnnealingLR', 'CosineAnnealingLR(opt, T_max=steps)'),
    'warmup-cosine': ('miniai: warmup_cosine', 'warmup_cosine()(opt, steps)'),
    'constant': ('torch.optim.lr_scheduler: ConstantLR', 'ConstantLR(opt, factor=1.)'),
}


def script_of(config: TrainConfig, saved: dict[str, Any]) -> str:
    "The script for a run's resolved options and what it saved of its model."
    used, classes = _Imports(), saved['outputs'] == 'classes'
    parts = dict(data=_data(config, used), model=_model(config, saved, used), opt_func=_optimizer(config, used),
                 schedule=_schedule(config, used), cbs=_callbacks(config, saved, used),
                 loss='F.cross_entropy' if classes else 'F.mse_loss',
                 metrics=used('miniai: accuracy', 'accuracy=accuracy') if classes else '')
    used('miniai: BatchSchedCB DeviceCB Learner MetricsCB ProgressCB set_seed')
    return SCRIPT.format(imports=used, seed=config.seed, lr=config.lr, epochs=config.epochs, **parts)


SCRIPT = '''"Trains to the same weights as a run of `miniai train`."
import torch.nn.functional as F
{imports}

# Batches, in an order that depends on the seed.
dls = {data}
print(dls)

# The model, for the channels and classes of the data, with weights drawn from the seed.
set_seed({seed})
model = {model}


def rates(opt, steps):
    "The schedule of the learning rate over all steps of the fit."
    return {schedule}


# The loop calls the methods of its callbacks, such as after_batch(learn), which may change anything.
cbs = [{cbs}, MetricsCB({metrics}), ProgressCB(), BatchSchedCB(rates)]
learn = Learner(model, dls, {loss}, lr={lr!r}, cbs=cbs, opt_func={opt_func})
learn.fit({epochs})

print(learn.results())
learn.save_model('model.safetensors')  # miniai.load gives it back as a predictor
'''


class _Imports:
    "The imports that a script needs, collected while it is written."
    def __init__(self) -> None: self.names: dict[str, set[str]] = {}

    def __call__(self, what: str, text: str = '') -> str:
        "Note that `text` needs 'module: name name', and return it."
        module, _, names = what.partition(': ')
        self.names.setdefault(module, set()).update(names.split())
        return text

    def __str__(self) -> str:
        return '\n'.join(_import(m, ', '.join(sorted(nms))) for m, nms in sorted(self.names.items()))


def _import(module: str, names: str) -> str:
    line = f'from {module} import {names}'
    if len(line) <= 120: return line
    return f'from {module} import (\n' + textwrap.indent(textwrap.fill(names, 110), '    ') + ')'


def _data(config: TrainConfig, used: _Imports) -> str:
    word, path = config.data, Path(config.data).expanduser()
    if word in DATA or any(path.glob('train-images-idx3-ubyte*')):
        named = dict(hub="source='hub'", sample="source='sample'")
        source = named.get(word, '' if word in DATA else f'folder={word!r}')
        used('miniai: fashion_mnist image_loaders')
        return f'image_loaders(fashion_mnist({source}), bs={config.batch_size}, seed={config.seed})'
    size = f', size={config.size}' if config.size else ''
    common = f'bs={config.batch_size}, seed={config.seed}' + ', skip_bad=True'*config.skip_bad
    columns = ''.join(f', {nm}={v!r}' for nm, v in columns_of(config).items())
    if word.startswith('hub:'):
        used('miniai.data.hub: from_hub')
        target = f', y={config.target!r}' if config.target else ''
        return f'from_hub({word[4:]!r}, valid={config.valid!r}{size}{target}{columns}, {common})'
    if ':' in word and not path.exists(): return _called(word, '', used)
    used('miniai: DataLoaders')
    if path.is_file():
        return f'DataLoaders.from_table({word!r}, {config.target!r}, valid={config.valid!r}{columns}, {common})'
    return f'DataLoaders.from_folder({word!r}, valid={config.valid!r}{size}, {common})'


def _called(path: str, arguments: str, used: _Imports) -> str:
    module, _, name = path.partition(':')
    return used(f'{module}: {name}', f'{name}({arguments})')


def _options(text: str, name: str) -> str: return ''.join(f', {k}={v!r}' for k, v in parse_options(name, text).items())


def _model(config: TrainConfig, saved: dict[str, Any], used: _Imports) -> str:
    used('miniai: build_model')
    name, facts = saved['net']['name'], 'dls.recipe.facts' if saved['recipe'] else '{}'
    model = f'build_model({name!r}, {facts}{_options(config.net, "net")})'
    if name not in MODELS: return model
    used('functools: partial')
    return used('miniai.init: init_weights', f'{model}.apply(partial(init_weights, leaky=0.1))')


def _optimizer(config: TrainConfig, used: _Imports) -> str:
    if config.optimizer in OPTIMIZERS: name = used(f'miniai.optim: {OPTIMIZERS[config.optimizer].build.__name__}',
                                                   OPTIMIZERS[config.optimizer].build.__name__)
    else: name = _called(config.optimizer, '', used).removesuffix('()')
    options = _options(config.opt, 'opt')
    return used('functools: partial', f'partial({name}{options})') if options else name


def _schedule(config: TrainConfig, used: _Imports) -> str:
    if config.schedule not in SCHEDULES: return _called(config.schedule, 'opt, steps', used)
    imports, text = SCHEDULES[config.schedule]
    opt = build_optimizer(config)([torch.zeros(1, requires_grad=True)], config.lr)
    fixed = '' if has_momentum(opt) else ', cycle_momentum=False'
    return used(imports, text.format(lr=config.lr, fixed=fixed))


def _callbacks(config: TrainConfig, saved: dict[str, Any], used: _Imports) -> str:
    n_inp = len(Recipe.from_dict(saved['recipe']).shapes) if saved['recipe'] else 1
    half, cbs = config.precision != 'float32', [f'DeviceCB({config.device!r})']
    if half:
        used('torch: ' + config.precision)
        cbs.append(used('miniai: MixedPrecision', f'MixedPrecision({n_inp}, {config.precision})'))
    else: cbs.append(used('miniai: TrainCB', f'TrainCB({n_inp if n_inp > 1 else ""})'))
    if config.layout == 'channels-last': cbs.append(used('miniai.accel: ChannelsLastCB', 'ChannelsLastCB()'))
    if config.compile: cbs.append(used('miniai.accel: CompileCB', 'CompileCB()'))
    return ', '.join(cbs)
