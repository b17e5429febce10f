"The ladder: data and weights that depend on the seed alone, models that learn, and tasks found by name."
import sys

import pytest
import torch

from miniai.device import to_device
from miniai.racing import ladder
from miniai.racing.entrants import configurations, find_entrant
from miniai.racing.ladder import TASKS, find_task
from miniai.racing.trial import run_trial


def test_the_ladder_reaches_from_a_linear_model_to_a_gpt():
    assert [*TASKS] == ['logistic', 'mlp', 'diffusion', 'convnet', 'resnet', 'unet', 'gpt']


@pytest.mark.parametrize('name', TASKS)
def test_weights_and_batches_depend_on_the_seed_alone_and_fit_together(name):
    def weights(seed): return torch.cat([p.flatten() for p in TASKS[name].model(seed).parameters()])
    def batch(seed): return next(iter(TASKS[name].dls(seed).train))
    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert all(map(torch.equal, batch(1), batch(1)))
    assert not torch.equal(batch(1)[0], batch(2)[0])
    model = TASKS[name].model(0)
    x, y = to_device(batch(0), next(model.parameters()).device)
    assert TASKS[name].loss(model(x), y).isfinite()


@pytest.mark.parametrize('name', ['logistic', 'mlp', 'diffusion'])
def test_a_quick_task_is_learned_in_a_quarter_of_its_steps(name):
    task, entrant = TASKS[name], find_entrant('adamw')
    out = run_trial(task, entrant, configurations(entrant.space, 1)[0], 0, task.steps//4, tunes=False)
    assert out['final'] < .9*out['start']


@pytest.mark.parametrize(('name', 'lr', 'known'), [('convnet', .02, .5), ('resnet', .02, .5), ('unet', .02, .49),
                                                   ('gpt', .005, 3.2)])
def test_a_slow_task_passes_what_needs_no_training_in_a_fifth_of_its_steps(name, lr, known):
    "Known: half of the classes; the erased image itself, as measured; the frequencies of characters."
    task = TASKS[name]
    assert run_trial(task, find_entrant('adamw'), dict(lr=lr), 0, task.steps//5, tunes=False)['final'] < known


def test_the_points_are_a_spiral_and_unit_noise_and_their_mix_has_both():
    rows, noise = ladder._noised_points()
    assert noise.mean(0).abs().max() < .02
    assert noise.std(0) - 1 == pytest.approx([0, 0], abs=.02)
    time = rows[:, 2:].double()
    points = (rows[:, :2] - torch.sin(time*torch.pi/2)*noise)/torch.cos(time*torch.pi/2)
    early = (time < .5).flatten()
    radius, angle = points.norm(dim=1)[early], torch.atan2(points[:, 1], points[:, 0])[early]
    torch.testing.assert_close((5*radius).cos(), angle.cos(), atol=1e-2, rtol=0)


def test_an_erased_image_lacks_one_square_and_is_otherwise_the_image():
    erased, images = ladder._erased_images()
    differs = erased != images
    assert not erased[differs].any()
    for d in differs[:50].int():
        rows, columns = d.amax(1).nonzero(), d.amax(0).nonzero()
        assert rows[-1] - rows[0] < ladder.ERASED
        assert columns[-1] - columns[0] < ladder.ERASED


def test_the_target_of_a_character_is_the_next_one():
    x, y = ladder._windows()
    assert torch.equal(x.flatten()[1:], y.flatten()[:-1])
    assert 0 <= x.min() <= x.max() < ladder.CHARACTERS


def test_a_python_without_its_help_texts_is_an_error_that_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pydoc_data.topics', None)
    ladder._windows.cache_clear()
    with pytest.raises(RuntimeError, match='the task gpt reads the help texts'): TASKS['gpt'].dls(0)


def test_tasks_are_found_by_name_and_in_modules():
    assert find_task('mlp') is TASKS['mlp']
    assert find_task('races:tiny').name == 'tiny'
    for name, said in (('mpl', "unknown task 'mpl'"), ('races:data', "without arguments .*TypeError: .*'seed'"),
                       ('races:none', 'cannot import'), ('races:broken', 'raises KeyError'),
                       ('os:getcwd', 'a str, not')):
        with pytest.raises(ValueError, match=said): find_task(name)
