"Five commands from an empty folder: class folders, train, evaluate, predict, export, and onnxruntime without miniai."
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from miniai import load

ALONE = """
import json, sys
from importlib.util import find_spec
sys.path.append('packages')
assert not [nm for nm in ('miniai', 'torch') if find_spec(nm)]
import numpy, onnxruntime
from PIL import Image
session = onnxruntime.InferenceSession('model.onnx', providers=['CPUExecutionProvider'])
classes = json.loads(session.get_modelmeta().custom_metadata_map['classes'])
x = numpy.stack([numpy.array(Image.open(f)).transpose(2, 0, 1) for f in sys.argv[1:]])
found = [session.run(None, {'input': batch})[0].tolist() for batch in (x, x[:1])]
print(json.dumps([[dict(zip(classes, row)) for row in rows] for rows in found]))
"""


def write_classes(folder, n, seed):
    "`n` pictures of 12 x 12 pixels for each class, of noise that is brighter in one color."
    r = np.random.default_rng(seed)
    for color, name in enumerate(('red', 'green', 'blue')):
        (folder/name).mkdir(parents=True)
        for i in range(n):
            x = r.integers(0, 160, (12, 12, 3), dtype=np.uint8)
            x[..., color] += 60
            Image.fromarray(x).save(folder/name/f'{i}.png')


def said(here, *command):
    "What a process prints. It has one thread."
    done = subprocess.run([sys.executable, *command], cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def link_packages(folder, *names):
    "A folder with these installed packages and no others."
    folder.mkdir()
    for name in names:
        package = Path(find_spec(name).submodule_search_locations[0])
        (folder/name).symlink_to(package)
        for libs in package.parent.glob(f'{dict(PIL="pillow").get(name, name)}.libs'):
            (folder/libs.name).symlink_to(libs)


def test_five_commands_give_the_same_probabilities(tmp_path, monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    write_classes(tmp_path/'photos', 10, seed=0)
    write_classes(tmp_path/'test', 3, seed=1)
    link_packages(tmp_path/'packages', 'numpy', 'onnxruntime', 'PIL')
    files = [f'test/{nm}/{i}.png' for nm in ('blue', 'green', 'red') for i in range(3)]
    def miniai(*args): return said(tmp_path, '-m', 'miniai', *args)

    miniai('train', '--data', 'photos/', '--epochs', '1', '--batch-size', '8', '--device', 'cpu', '--no-stats',
           '--out', 'run')
    evaluated = json.loads(miniai('evaluate', 'run', '--data', 'test/', '--json'))
    predicted = json.loads(miniai('predict', 'run', *files, '--json'))
    miniai('export', 'run', 'model.onnx')
    alone, alone_one = json.loads(said(tmp_path, '-I', '-S', '-c', ALONE, *files))

    predict = load(tmp_path/'run')  # and in plain PyTorch, from the weights and the scaling
    x = torch.from_numpy(np.stack([np.array(Image.open(tmp_path/f)) for f in files])).permute(0, 3, 1, 2)/255
    mean, std = (torch.tensor(t).reshape(3, 1, 1) for t in (predict.recipe.mean, predict.recipe.std))
    plain = predict.model((x - mean)/std).softmax(1).tolist()
    names = ['blue', 'green', 'red']
    for i, f in enumerate(files):
        want = pytest.approx(dict(zip(names, plain[i], strict=True)), abs=1e-5)
        assert predict(tmp_path/f).probabilities == want
        assert (predicted[i]['input'], predicted[i]['probabilities']) == (f, want)
        assert alone[i] == want
    assert alone_one == [pytest.approx(alone[0], abs=1e-5)]
    true = torch.arange(9)//3
    confusion = [[sum(1 for t, p in zip(true, plain, strict=True) if t == i and np.argmax(p) == j) for j in range(3)]
                 for i in range(3)]
    assert evaluated['confusion'] == confusion
    assert [row['class'] for row in evaluated['classes']] == names
