"The built-in optimizers: a class for each rule, with torch's names if torch has the same mathematics."
from typing import Any

from miniai.kernels.matrix import COEFFICIENTS
from miniai.optim import matrix_rules, rules
from miniai.optim.optimizer import RuleOptimizer

__all__ = ['SGD', 'Momentum', 'HeavyBall', 'Nesterov', 'RMSProp', 'Adagrad', 'Adam', 'AdamW', 'NAdamW', 'RAdam',
           'ScheduleFreeSGD', 'ScheduleFreeAdamW', 'Prodigy', 'ADOPT', 'AdEMAMix', 'MARS', 'Lion', 'LAMB', 'Muon',
           'Scion', 'NorMuon', 'SOAP', 'Shampoo', 'Adafactor', 'Kron']


class SGD(RuleOptimizer):
    "`SGD(params, lr, wd=0.)`: stochastic gradient descent."
    rule = rules.sgd
    torch_group = staticmethod(lambda group: dict(momentum=0., dampening=0., nesterov=False))


class Momentum(RuleOptimizer):
    "`Momentum(params, lr, wd=0., mom=0.9)`: SGD along an average of the gradients, dampened by 1-mom."
    rule = rules.momentum
    state_names = dict(avg='momentum_buffer')
    torch_group = staticmethod(lambda group: dict(dampening=group.get('momentum'), nesterov=False))


class HeavyBall(RuleOptimizer):
    "`HeavyBall(params, lr, wd=0., mom=0.9)`: SGD with momentum, the same as torch.optim.SGD."
    rule = rules.heavy_ball
    state_names = dict(buf='momentum_buffer')
    torch_group = staticmethod(lambda group: dict(dampening=0., nesterov=False))


class Nesterov(RuleOptimizer):
    "`Nesterov(params, lr, wd=0., mom=0.9)`: SGD with Nesterov momentum, the same as torch.optim.SGD."
    rule = rules.nesterov
    state_names = dict(buf='momentum_buffer')
    torch_group = staticmethod(lambda group: dict(dampening=0., nesterov=True))


class RMSProp(RuleOptimizer):
    """`RMSProp(params, lr, wd=0., sqr_mom=0.99, eps=1e-5)`: the gradient divided by the root of its average square. The
    average starts at the first squared gradient."""
    rule = rules.rmsprop
    state_names = dict(sqr_avg='square_avg')
    torch_names = dict(sqr_mom='alpha')
    torch_group = staticmethod(lambda group: dict(momentum=0., centered=False))


class Adam(RuleOptimizer):
    """`Adam(params, lr, wd=0., beta1=0.9, beta2=0.99, eps=1e-5)`: the average gradient divided by the root of the
    average square, both bias-corrected, with `eps` inside the root."""
    rule = rules.adam
    state_names = dict(avg='exp_avg', sqr_avg='exp_avg_sq')
    torch_group = staticmethod(lambda group: dict(amsgrad=False))
    unlike_torch = dict(eps="torch's Adam has it outside the root, as AdamW does here: load the state_dict in AdamW")


class Adagrad(RuleOptimizer):
    """`Adagrad(params, lr, wd=0., lr_decay=0., eps=1e-10)`: the gradient divided by the root of the sum of its squares,
    the same as torch.optim.Adagrad."""
    rule = rules.adagrad
    state_names = dict(sqr_sum='sum')


class AdamW(RuleOptimizer):
    """`AdamW(params, lr=1e-3, wd=0.01, beta1=0.9, beta2=0.999, eps=1e-8)`: Adam with `eps` outside the root and
    decoupled decay, the same as torch.optim.AdamW."""
    rule = rules.adamw
    default_wd = 0.01
    state_names = dict(avg='exp_avg', sqr_avg='exp_avg_sq')
    torch_group = staticmethod(lambda group: dict(amsgrad=False))


class NAdamW(RuleOptimizer):
    """`NAdamW(params, lr=2e-3, wd=0.01, beta1=0.9, beta2=0.999, eps=1e-8, momentum_decay=4e-3)`: AdamW with Nesterov
    momentum, the same as torch.optim.NAdam with decoupled decay."""
    rule = rules.nadamw
    default_wd = 0.01
    state_names = dict(avg='exp_avg', sqr_avg='exp_avg_sq')


class RAdam(RuleOptimizer):
    """`RAdam(params, lr=1e-3, wd=0., beta1=0.9, beta2=0.999, eps=1e-8)`: Adam with a rate that is rectified while the
    average square is young, the same as torch.optim.RAdam."""
    rule = rules.radam
    state_names = dict(avg='exp_avg', sqr_avg='exp_avg_sq')


class _ScheduleFree(RuleOptimizer):
    @classmethod
    def _check(cls, group: dict[str, Any]) -> None:
        super()._check(group)
        mom = group['betas'][0] if 'betas' in group else group['momentum']
        if mom == 0: raise ValueError(f"{cls.__name__}: momentum, or beta1, must be above 0: it is the weight of the "
                                      f"average in the point where gradients are taken")


class ScheduleFreeSGD(_ScheduleFree):
    """`ScheduleFreeSGD(params, lr=1., wd=0., mom=0.9, warmup_steps=0, r=0., weight_lr_power=2.)`: SGD that needs no
    schedule, because models are evaluated at an average of its steps. A Learner switches to the average by itself;
    other loops call `opt.eval()` before they evaluate or save a model, and `opt.train()` before they train on."""
    rule = rules.schedule_free_sgd


class ScheduleFreeAdamW(_ScheduleFree):
    """`ScheduleFreeAdamW(params, lr=2.5e-3, wd=0., beta1=0.9, beta2=0.999, eps=1e-8, warmup_steps=0, r=0.,
    weight_lr_power=2.)`: AdamW that needs no schedule, because models are evaluated at an average of its steps. See
    ScheduleFreeSGD for `opt.train()` and `opt.eval()`."""
    rule = rules.schedule_free_adamw
    state_names = dict(sqr_avg='exp_avg_sq')


class Prodigy(RuleOptimizer):
    """`Prodigy(params, lr=1., wd=0., beta1=0.9, beta2=0.999, eps=1e-8, d=1e-6, d_numerator=0., d_coef=1.)`: AdamW that
    finds its rate: `lr` times `d`, an estimate of the distance to the solution. `lr` is for schedules. Groups hold `d`
    and `d_numerator`, which change at each step."""
    rule = rules.prodigy
    state_names = dict(avg='exp_avg', sqr_avg='exp_avg_sq')


class ADOPT(RuleOptimizer):
    """`ADOPT(params, lr=1e-3, wd=0., beta1=0.9, beta2=0.9999, eps=1e-6)`: Adam that converges with any beta2. Its first
    step moves nothing but decay."""
    rule = rules.adopt
    state_names = dict(avg='exp_avg', sqr_avg='exp_avg_sq')


class AdEMAMix(RuleOptimizer):
    """`AdEMAMix(params, lr=1e-3, wd=0., beta1=0.9, beta2=0.999, beta3=0.9999, alpha=5., eps=1e-8)`: AdamW with a slow
    average of gradients, weighted by `alpha`, for long runs."""
    rule = rules.ademamix
    state_names = dict(avg='exp_avg', slow_avg='exp_avg_slow', sqr_avg='exp_avg_sq')


class MARS(RuleOptimizer):
    """`MARS(params, lr=3e-3, wd=0., beta1=0.95, beta2=0.99, gamma=0.025, eps=1e-8)`: AdamW on gradients whose noise is
    reduced by their change since the last step, each parameter's clipped to norm 1: MARS-AdamW. Vectors are stepped
    in the same way, as with the authors' `optimize_1d`."""
    rule = rules.mars
    state_names = dict(avg='exp_avg', sqr_avg='exp_avg_sq', last_g='last_grad')


class Lion(RuleOptimizer):
    """`Lion(params, lr, wd=0., beta1=0.9, beta2=0.99)`: the sign of an average gradient. It needs about a tenth of
    Adam's learning rate."""
    rule = rules.lion
    state_names = dict(avg='exp_avg')


class LAMB(RuleOptimizer):
    """`LAMB(params, lr=1e-3, wd=0., beta1=0.9, beta2=0.999, eps=1e-6)`: Adam with steps as long as the parameter
    times the rate, for very large batches. Decay is not part of that length, as it is in the paper: it is a stage, the
    same as for every rule."""
    rule = rules.lamb
    state_names = dict(avg='exp_avg', sqr_avg='exp_avg_sq')


class Muon(RuleOptimizer):
    """`Muon(model, lr=1e-3, wd=0.1, mom=0.95, ns_steps=5, coefficients='quintic', adjust='match_rms_adamw')`: an
    orthogonalized momentum for hidden matrices and convolutions, the same as torch.optim.Muon, and AdamW for all other
    parameters, at the same rate. Given a model, or by a Learner, it knows embeddings and the last layer; given
    parameters alone, all that have two or more dimensions count as hidden."""
    rule = rules.muon
    default_wd = 0.1
    state_names = dict(buf='momentum_buffer')
    torch_names = dict(adjust='adjust_lr_fn')

    @staticmethod
    def torch_group(group: dict[str, Any]) -> dict[str, Any]:
        "What torch's Muon has in a group."
        adjust = 'original' if group.get('adjust') == 'spectral' else group.get('adjust')
        return dict(nesterov=True, ns_coefficients=COEFFICIENTS[group.get('coefficients') or 'quintic'], eps=1e-7,
                    adjust_lr_fn=adjust)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        "Like RuleOptimizer's; torch's Muon also says None for 'original'."
        groups = [g | dict(adjust_lr_fn='original') if g.get('adjust_lr_fn', '') is None else g
                  for g in state_dict['param_groups']]
        super().load_state_dict(state_dict | dict(param_groups=groups))


class Scion(RuleOptimizer):
    """`Scion(model, lr=2**-12, wd=1., mom=0.9, scale=50., ns_steps=5, coefficients='quintic')`: steps of a fixed length
    in a norm that fits each layer: spectral for hidden matrices and convolutions, signs for embeddings and the last
    layer, 60 times as long, and the root mean square for vectors. `wd=1` bounds each parameter by its scale, the
    authors' constrained form; `wd=0` is the unconstrained one. The defaults are those of their language models."""
    rule = matrix_rules.scion
    default_wd = 1.
    state_names = dict(avg='momentum_buffer')


class NorMuon(RuleOptimizer):
    """`NorMuon(model, lr=1e-3, wd=0., mom=0.95, beta2=0.95, eps=1e-10, ns_steps=5, coefficients='quintic',
    adjust='match_rms_adamw')`: Muon whose rows are scaled as Adam scales elements. It splits the parameters as Muon
    does."""
    rule = matrix_rules.normuon
    state_names = dict(buf='momentum_buffer', sqr_avg='second_momentum_buffer')


class SOAP(RuleOptimizer):
    """`SOAP(model, lr=3e-3, wd=0.01, beta1=0.95, beta2=0.95, eps=1e-8, every=10)`: Adam in the basis in which the
    gradients of a matrix vary most, renewed at each `every`-th step. Its first step moves nothing but decay. It splits
    the parameters as Muon does, and leaves matrices with a side above 10,000 to AdamW, too."""
    rule = matrix_rules.soap
    default_wd = 0.01
    state_names = dict(avg='exp_avg', sqr_avg='exp_avg_sq')


class Shampoo(RuleOptimizer):
    """`Shampoo(model, lr=1e-3, wd=0., beta1=0.9, beta2=0.999, eps=1e-8, damping=1e-12, every=100)`: gradients of a
    matrix divided by roots of their second moments on both sides, with steps as long as Adam's. The roots are computed
    at each `every`-th step, and the steps before the first are Adam's. Matrices with a side above 8,192, and all that
    is no hidden matrix, are left to AdamW."""
    rule = matrix_rules.shampoo
    state_names = dict(avg='exp_avg', sqr_avg='exp_avg_sq')


class AdafactorVector(RuleOptimizer):
    "Adafactor's rule for what has no rows and columns: what `Adafactor` uses for vectors."
    rule = matrix_rules.adafactor_vector

    @staticmethod
    def torch_group(group: dict[str, Any]) -> dict[str, Any]:
        "What torch's Adafactor has in a group."
        eps1 = None if group.get('eps1') == 'precision' else group.get('eps1')
        return dict(eps=(eps1, group.get('eps2')), beta2_decay=-(group.get('decay_power') or 0), maximize=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        "Like RuleOptimizer's; torch's Adafactor has a pair `eps`, the power with a minus, and decoupled decay."
        def own(saved: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
            if 'decay_power' in saved or 'beta2_decay' not in saved: return saved
            eps = dict(eps1='precision' if saved['eps'][0] is None else saved['eps'][0], eps2=saved['eps'][1])
            rule = dict(rule=self.rule_of(group).mathematics, decoupled_weight_decay=True)
            return saved | eps | rule | dict(decay_power=-saved['beta2_decay'])
        pairs = zip(state_dict['param_groups'], self.param_groups, strict=False)
        super().load_state_dict(state_dict | dict(param_groups=[own(*pair) for pair in pairs]))


class Adafactor(AdafactorVector):
    """`Adafactor(model, lr=1e-2, wd=0., decay_power=0.8, eps1='precision', eps2=1e-3, d=1.)`: the gradient divided by
    the root of its average square, kept only as means of rows and columns; steps as long as the parameter times the
    rate. Almost without state, and the same as torch.optim.Adafactor. Vectors are in a group of their own.
    `eps1='precision'` is the distance from 1 to the next number."""
    rule = matrix_rules.adafactor

    def _defaults_of(self, rule: type[RuleOptimizer]) -> dict[str, Any]:
        return self.defaults if rule is AdafactorVector else super()._defaults_of(rule)


class Kron(RuleOptimizer):
    """`Kron(model, lr=3e-4, wd=0., mom=0.9, factor_lr=0.1, every=34)`: PSGD's momentum, whitened by two triangular
    factors, which random numbers help to fit: at each of the first 500 steps, then less often, in the end at each
    `every`-th. It splits the parameters as Muon does, and leaves matrices with a side above 8,192 to AdamW, too."""
    rule = matrix_rules.kron
    state_names = dict(avg='momentum_buffer')
