"What the tests of MixedPrecision and AccelerateCB share."
import torch

WAS_SCALED = r'gradients were scaled \(float16\) in the checkpoint and are not scaled \(bfloat16 or float32\) now'
IS_SCALED = r'gradients were not scaled \(bfloat16 or float32\) in the checkpoint and are scaled \(float16\) now'


class PlainSGD:
    "An optimizer with only `step` and `zero_grad`."
    def __init__(self, params, lr): self.params, self.lr = list(params), lr

    @torch.no_grad()
    def step(self):
        for p in self.params: p -= self.lr*p.grad

    def zero_grad(self):
        for p in self.params: p.grad = None


class At:
    "A callback that calls `f` at `event`, after all other callbacks."
    order, only_shows = 1000, True
    def __init__(self, event, f): setattr(self, event, f)


def dtypes_of(model):
    "A list that grows by the output dtype of the model's first layer at each forward."
    seen = []
    next(model.children()).register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    return seen
