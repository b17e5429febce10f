"The public faces of the rules: each class is its rule, with torch's names where torch has the same mathematics."
from . import rules
from .optimizer import RuleOptimizer

__all__ = ['SGD', 'Momentum', 'RMSProp', 'Adam']


class SGD(RuleOptimizer):
    "`SGD(params, lr, wd=0.)`: stochastic gradient descent."
    rule = rules.sgd
    torch_group = staticmethod(lambda group: dict(momentum=0., dampening=0.))


class Momentum(RuleOptimizer):
    "`Momentum(params, lr, wd=0., mom=0.9)`: SGD along an average of gradients, dampened by 1-mom."
    rule = rules.momentum
    state_names = dict(avg='momentum_buffer')
    torch_group = staticmethod(lambda group: dict(dampening=group['momentum']))


class RMSProp(RuleOptimizer):
    """`RMSProp(params, lr, wd=0., sqr_mom=0.99, eps=1e-5)`: the gradient over the root of its average square, which
    starts at the first."""
    rule = rules.rmsprop
    state_names = dict(sqr_avg='square_avg')
    torch_group = staticmethod(lambda group: dict(alpha=group['sqr_mom'], momentum=0., centered=False))


class Adam(RuleOptimizer):
    """`Adam(params, lr, wd=0., beta1=0.9, beta2=0.99, eps=1e-5)`: bias-corrected averages of gradient and square, `eps`
    inside the root."""
    rule = rules.adam
    state_names = dict(avg='exp_avg', sqr_avg='exp_avg_sq')
