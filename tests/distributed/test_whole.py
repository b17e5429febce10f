"Whole copies of models: the modules and values of one process, from every way to divide a model."
import copy

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from miniai.distributed.whole import whole_copy
from miniai.distributed.wrap import shard
from miniai.inference.model_file import load
from miniai.learner import TrainLearner
from ranks import run_ranks


class Tied(nn.Module):
    "Two layers share a weight, and there is a hook of the user's."
    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(7, 7), nn.Linear(7, 7), nn.BatchNorm1d(7)
        self.b.weight, self.recipe = self.a.weight, dict(name='tied')
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(7, 7), nn.ReLU()) for _ in range(2))
        self.a.register_forward_hook(twice)

    def forward(self, x):
        x = self.norm(self.b(self.a(x)))
        for block in self.blocks: x = block(x)
        return x


def twice(m, args, out): return 2*out


def copies(path):
    "For each way to divide the model: is the copy in all respects what it was, and on the CPU in eval mode as before?"
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
    torch.manual_seed(1)
    model, x, same = Tied().eval(), torch.randn(5, 7), []
    for divide in ('ddp', 'fsdp', 'tp'):
        whole = copy.deepcopy(model)
        if divide == 'ddp': divided = DistributedDataParallel(whole)
        elif divide == 'fsdp': divided = (shard(whole, blocks=nn.Sequential), whole)[1]
        else: divided = parallelize_module(whole, init_device_mesh('cpu', (2,)), {'blocks.0.0': ColwiseParallel()})
        if divide == 'fsdp': divided(x)  # after a forward pass its root holds whole weights
        found = whole_copy(divided)
        state, expected = found.state_dict(), model.state_dict()
        same.append((divide, str(found) == str(model), type(found) is Tied, found.b.weight is found.a.weight,
                     state.keys() == expected.keys(), all(type(v) is torch.Tensor and v.equal(expected[k])
                                                         for k, v in state.items()),
                     torch.equal(found(x), model(x)), vars(found).keys() == vars(model).keys()))
    torch.manual_seed(2)
    sharded = Tied()
    shard(sharded, blocks=nn.Sequential)
    TrainLearner(sharded, None).save_model(path)
    return same


def test_a_copy_of_a_divided_model_is_the_model_of_one_process_and_the_first_saves_it(tmp_path):
    path = tmp_path/'model.safetensors'
    for found in run_ranks(copies, 2, path):
        for divide, *same in found: assert all(same), (divide, same)
    torch.manual_seed(2)
    expected = Tied().state_dict()
    saved = load(path, model=Tied()).model.state_dict()
    assert all(saved[k].equal(v) for k, v in expected.items())
