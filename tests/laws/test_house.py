"The house's laws: imports go down, files are short and say what they are, names are documented, the door is light."
import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT/'src'/'miniai'
FILES = sorted(SRC.rglob('*.py'))
LAYERS = [  # from the bottom up: a file imports from layers below its own, or from its own package
    'atomic events device environment randomness images', 'distributed', 'show trackers',
    'kernels models checkpoint metrics', 'optim data report', 'callbacks', 'steps', 'diagnosis', 'inference', 'resume',
    'datasets conv activations init sgd training resnet augment accel proof', 'learner', 'jobs', 'racing', 'cli',
    '__main__', '__init__']
LAYER = {room: i for i, rooms in enumerate(LAYERS) for room in rooms.split()}
API = dict(
    training='accuracy report Dataset fit get_dls',
    datasets='inplace collate_dict DataLoaders show_image subplots get_grid show_images',
    conv='def_device to_device collate_device conv',
    learner='CancelFitException CancelEpochException CancelBatchException Callback run_cbs with_cbs to_cpu Learner '
            'TrainLearner MomentumLearner TrainCB SingleBatchCB DeviceCB MetricsCB ProgressCB LRFinderCB lr_find',
    activations='set_seed Hook Hooks HooksCallback append_stats get_hist get_min ActivationStats',
    init='GeneralRelu plot_func init_weights lsuv_init conv get_model BatchTransformCB clean_mem clean_tb '
         'clean_ipython_hist',
    sgd='BaseSchedCB BatchSchedCB EpochSchedCB HasLearnCB RecorderCB SGD Momentum RMSProp Adam',
    resnet='act_gr ResBlock',
    augment='summary show_image_batch capture_preds CapturePreds rand_erase RandErase rand_copy RandCopy',
    accel='MixedPrecision AccelerateCB',
)


def room(path):
    "The file or package directly under miniai that `path` belongs to."
    return path.relative_to(SRC).parts[0].removesuffix('.py')


def module(path): return '.'.join(path.relative_to(SRC.parent).with_suffix('').parts).removesuffix('.__init__')


MODULES = {module(p) for p in FILES}


def tree(path): return ast.parse(path.read_text())


def imported(path):
    "Dotted names of miniai modules that `path` imports, relative imports resolved."
    package = module(path).split('.') if path.name == '__init__.py' else module(path).split('.')[:-1]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import): yield from (a.name for a in node.names if a.name.startswith('miniai'))
        if not isinstance(node, ast.ImportFrom): continue
        above = package[:len(package) - node.level + 1] if node.level else []
        base = '.'.join([*above, *([node.module] if node.module else [])])
        if not base.startswith('miniai'): continue
        for a in node.names: yield f'{base}.{a.name}' if f'{base}.{a.name}' in MODULES else base


@pytest.mark.parametrize('path', FILES, ids=module)
def test_imports_go_down_or_stay_in_their_own_package(path):
    here = room(path)
    assert here in LAYER, f"{here} has no layer: give it one here and in docs/architecture.md"
    for target in imported(path):
        there = target.split('.')[1] if '.' in target else '__init__'
        goes_down = there == here or LAYER[there] < LAYER[here]
        assert goes_down, f"{module(path)} imports {target}, of layer {LAYER[there]}"


def test_imports_have_no_cycles():
    graph = {module(p): {t for t in imported(p) if t != module(p)} for p in FILES}
    done, path = set(), []
    def visit(m):
        assert m not in path, f"import cycle: {' > '.join([*path[path.index(m):], m])}"
        if m in done: return
        path.append(m)
        for t in graph.get(m, ()): visit(t)
        done.add(path.pop())
    for m in graph: visit(m)


@pytest.mark.parametrize('path', FILES, ids=module)
def test_a_file_is_short_and_opens_with_its_one_idea(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    assert ast.get_docstring(tree(path)), "a file opens with one sentence: what lives here, what it may know"


@pytest.mark.parametrize('path', FILES, ids=module)
def test_there_are_no_star_imports(path):
    froms = [n for n in ast.walk(tree(path)) if isinstance(n, ast.ImportFrom)]
    assert not [n for n in froms if any(a.name == '*' for a in n.names)]


@pytest.mark.parametrize('path', FILES, ids=module)
def test_no_file_has_a_name_that_says_nothing(path):
    assert path.stem not in ('utils', 'util', 'helpers', 'common', 'misc')


def test_ruff_finds_nothing():
    assert subprocess.run([sys.executable, '-m', 'ruff', 'check', str(ROOT)], capture_output=True).returncode == 0


@pytest.mark.parametrize('mod', API)
def test_every_name_of_the_api_is_there_and_exported(mod):
    m = importlib.import_module(f'miniai.{mod}')
    for name in API[mod].split():
        assert getattr(m, name, None) is not None, f"miniai.{mod}.{name} is missing"
        assert name in m.__all__, f"miniai.{mod}.{name} is not in __all__"


@pytest.mark.parametrize('path', FILES, ids=module)
def test_every_public_name_is_documented(path):
    m = importlib.import_module(module(path))
    for name in getattr(m, '__all__', ()):
        o = getattr(m, name)
        if not (inspect.isfunction(o) or inspect.isclass(o)): continue
        assert inspect.getdoc(o), f"{module(path)}.{name} has no docstring"


def test_public_signatures_are_annotated():
    for path in FILES:
        top = [n for n in tree(path).body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
        methods = [m for c in top if isinstance(c, ast.ClassDef) for m in c.body if isinstance(m, ast.FunctionDef)]
        for f in [n for n in top if isinstance(n, ast.FunctionDef)] + methods:
            if f.name.startswith('_'): continue
            if path.stem in ('rules', 'matrix_rules', 'pointers'): continue  # equations; Numba's types
            assert f.returns, f"{module(path)}.{f.name} has no return annotation"


def test_the_map_names_every_file():
    text = (ROOT/'docs'/'architecture.md').read_text()
    mapped = set(re.findall(r'^(src/miniai/\S+\.py)\s', text, re.M))
    there = {str(p.relative_to(ROOT)) for p in FILES}
    assert mapped == there, f"not in the map: {sorted(there - mapped)}; not in the tree: {sorted(mapped - there)}"


IMPORT = """
import torch  # first: its CUDA build starts ldconfig to find its libraries
import sys, os
started = []
os.fork = lambda *a: started.append('fork')
import subprocess, threading
subprocess.Popen.__init__ = lambda *a, **k: started.append('process')
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in OPTIONAL: raise ImportError(name)
OPTIONAL = {'datasets', 'accelerate', 'torchmetrics', 'tyro', 'rich', 'IPython', 'ipykernel', 'torchvision',
            'torcheval', 'fastcore', 'fastprogress', 'timm', 'tensorboard'}
sys.meta_path.insert(0, Refuse())
import miniai, miniai.cli
import miniai.training, miniai.datasets, miniai.conv, miniai.learner, miniai.activations
import miniai.init, miniai.sgd, miniai.resnet, miniai.augment, miniai.accel
heavy = sorted({'numba', 'triton', 'matplotlib', 'IPython'} & {m.split('.')[0] for m in sys.modules})
heavy += {'torch._dynamo'} & {*sys.modules}  # torch's first optimizer loads it, for a second
assert not heavy, heavy
assert not started, started
print('light')
"""


def test_the_door_needs_the_required_dependencies_alone_and_starts_nothing():
    out = subprocess.run([sys.executable, '-c', IMPORT], capture_output=True, text=True)
    assert out.stdout.strip() == 'light', out.stderr


def test_nothing_imports_what_only_user_code_may_bring():
    foreign = ('torchvision', 'torcheval', 'fastcore', 'fastprogress')
    for path in FILES:
        names = [a.name for n in ast.walk(tree(path)) if isinstance(n, ast.Import) for a in n.names]
        names += [n.module for n in ast.walk(tree(path)) if isinstance(n, ast.ImportFrom) and n.module]
        assert not [nm for nm in names if nm.split('.')[0] in foreign], path
