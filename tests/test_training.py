"The plain loop and what goes with it."
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.utils.data import DataLoader

from miniai.training import Dataset, fit, get_dls, report
from reexports import check_reexports


@pytest.fixture
def task():
    x, y = torch.randn(50, 4), torch.randint(0, 3, (50,))
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(.2), nn.Linear(8, 3))
    return model, Dataset(x, y), Dataset(x[:23], y[:23])


def test_the_names_are_those_of_the_library():
    check_reexports('training', {'metrics.accuracy': 'accuracy binary_accuracy', 'data.loaders': 'Dataset get_dls'},
                    own='report fit')


def test_report_prints_loss_and_accuracy_to_two_places(capsys):
    report(torch.tensor(1.2345), torch.eye(3), torch.tensor([0, 1, 0]))
    assert capsys.readouterr().out == '1.23, 0.67\n'


def test_fit_is_the_plain_loop(task, capsys):
    model, train, valid = task
    ours, plain = deepcopy(model), deepcopy(model)
    torch.manual_seed(7)
    opt = optim.SGD(ours.parameters(), lr=.3, momentum=.9)
    loss, acc = fit(3, ours, F.cross_entropy, opt, *get_dls(train, valid, 8))

    torch.manual_seed(7)
    opt, lines = optim.SGD(plain.parameters(), lr=.3, momentum=.9), []
    train_dl, valid_dl = DataLoader(train, batch_size=8, shuffle=True), DataLoader(valid, batch_size=16)
    for epoch in range(3):
        plain.train()
        for xb, yb in train_dl:
            loss_b = F.cross_entropy(plain(xb), yb)
            loss_b.backward()
            opt.step()
            opt.zero_grad()
        plain.eval()
        next(iter(valid_dl))  # an epoch of a DataLoader draws its base seed
        with torch.no_grad(): out = plain(valid.x)
        lines.append((epoch, F.cross_entropy(out, valid.y).item(), (out.argmax(1) == valid.y).float().mean().item()))

    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))
    assert (loss, acc) == pytest.approx(lines[-1][1:], rel=1e-5)
    printed = [[float(v) for v in line.split()] for line in capsys.readouterr().out.splitlines()]
    assert len(printed) == 3
    for row, line in zip(printed, lines, strict=True): assert row == pytest.approx(line, rel=1e-5)


def test_fit_trains_in_training_mode_and_evaluates_without_gradients_in_eval_mode(task):
    model, train, valid = task
    seen = []
    model.register_forward_hook(lambda m, i, o: seen.append((m.training, o.requires_grad)))
    fit(1, model, F.cross_entropy, optim.SGD(model.parameters(), lr=.1), *get_dls(train, valid, 25))
    assert seen == [(True, True)]*2 + [(False, False)]
    assert all(p.grad is None for p in model.parameters())


def test_fit_weighs_each_batch_by_its_length():
    x, y = torch.arange(5.)[:, None].expand(-1, 2), torch.zeros(5).long()
    valid_dl = DataLoader(Dataset(x, y), batch_size=4)
    loss, acc = fit(1, nn.Identity(), lambda out, y: out.mean(), None, [], valid_dl)
    assert (loss, acc) == (2., 1.)


def test_fit_for_no_epoch_returns_nan_prints_nothing_and_trains_nothing(task, capsys):
    model, train, valid = task
    before = [p.clone() for p in model.parameters()]
    result = fit(0, model, F.cross_entropy, optim.SGD(model.parameters(), lr=.1), *get_dls(train, valid, 25))
    assert [v != v for v in result] == [True, True]
    assert capsys.readouterr().out == ''
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_an_empty_validation_loader_is_an_error(task):
    model, train, _ = task
    opt = optim.SGD(model.parameters(), lr=.1)
    with pytest.raises(ValueError, match='the validation loader is empty'):
        fit(1, model, F.cross_entropy, opt, DataLoader(train), [])
