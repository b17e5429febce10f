"Hooks: they call, they come off, one and many."
import pytest
import torch

from miniai.diagnosis.hooks import Hook, Hooks
from small import hooks_on, mlp


def test_a_hook_calls_its_function_with_itself_module_input_and_output_until_it_is_removed():
    model, seen = mlp(), []
    hook = Hook(model[0], lambda *args: seen.append(args))
    x = torch.randn(2, 4)
    model(x)
    (h, mod, inp, outp), = seen
    assert (h, mod) == (hook, model[0])
    assert inp[0] is x
    assert torch.equal(outp, model[0](x))
    seen.clear()
    hook.remove()
    hook.remove()
    model(x)
    assert seen == []
    assert hooks_on(model) == 0


def test_a_hook_that_gives_a_value_replaces_the_output_as_torchs_do():
    model = mlp()
    Hook(model[2], lambda h, m, i, o: o*0)
    assert model(torch.randn(2, 4)).eq(0).all()


def test_hooks_are_a_list_with_one_on_each_module():
    model, seen = mlp(), []
    hooks = Hooks(model, lambda h, m, i, o: seen.append(m))
    model(torch.randn(2, 4))
    assert seen == list(model)
    assert len(hooks) == 3
    assert all(isinstance(h, Hook) for h in hooks)


def test_hooks_are_removed_on_leaving_the_with_and_stay_in_the_list():
    model = mlp()
    with Hooks(model, print) as hooks: assert hooks_on(model) == 3
    assert hooks_on(model) == 0
    assert len(hooks) == 3


def test_hooks_are_removed_when_the_with_fails():
    model = mlp()
    with pytest.raises(KeyError, match='oh'), Hooks(model, print): raise KeyError('oh')
    assert hooks_on(model) == 0


@pytest.mark.parametrize(('i', 'left'), [(0, 2), (-1, 2), (slice(0, 2), 1), (slice(None), 0)])
def test_a_deleted_hook_is_removed_from_its_module_and_from_the_list(i, left):
    model = mlp()
    hooks = Hooks(model, print)
    del hooks[i]
    assert len(hooks) == hooks_on(model) == left


def test_deleting_a_hook_that_is_not_there_is_an_error():
    with pytest.raises(IndexError): del Hooks([], print)[0]
