"Forward hooks: what they are called with, and when they are removed."
import pytest
import torch

from miniai.diagnosis.hooks import Hook, Hooks
from small import hooks_on, mlp


def test_a_hook_passes_itself_module_input_and_output_until_it_is_removed():
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


def test_a_value_returned_by_the_function_replaces_the_output_like_torchs_hooks():
    model = mlp()
    Hook(model[2], lambda h, m, i, o: o*0)
    assert model(torch.randn(2, 4)).eq(0).all()


def test_hooks_are_a_list_with_one_per_module_that_says_what_it_is_on():
    model, seen = mlp(), []
    hooks = Hooks(model, lambda h, m, i, o: seen.append(m))
    model(torch.randn(2, 4))
    assert seen == list(model)
    assert all(isinstance(h, Hook) for h in hooks)
    assert repr(hooks) == '[<Hook on Linear>, <Hook on ReLU>, <Hook on Linear>]'


@pytest.mark.parametrize('fails', [False, True])
def test_hooks_are_removed_at_the_end_of_the_with_block_and_stay_in_the_list(fails):
    model = mlp()
    try:
        with Hooks(model, print) as hooks:
            assert hooks_on(model) == 3
            if fails: raise KeyError
    except KeyError: pass
    assert hooks_on(model) == 0
    assert len(hooks) == 3


@pytest.mark.parametrize(('i', 'left'), [(0, 2), (-1, 2), (slice(0, 2), 1), (slice(None), 0)])
def test_a_deleted_hook_is_removed_from_its_module_and_from_the_list(i, left):
    model = mlp()
    hooks = Hooks(model, print)
    del hooks[i]
    assert len(hooks) == hooks_on(model) == left


def test_deleting_a_hook_that_does_not_exist_is_an_error():
    with pytest.raises(IndexError): del Hooks([], print)[0]
