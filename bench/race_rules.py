"""Rules for bench/race_proofs.py whose rank is known before they race: AdamW twice, AdamW made worse by skipped steps,
AdamW and Nesterov that nobody tuned, and rules that fail."""
from miniai.kernels.math import sqrt
from miniai.optim import AdamW, Nesterov
from miniai.racing.entrants import find_entrant


def one(p, g, avg, sqr_avg, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    "AdamW in the order of miniai."
    avg     = beta1*avg     + (1-beta1)*g
    sqr_avg = beta2*sqr_avg + (1-beta2)*g*g
    return p - lr/(1 - beta1**t) * avg / (sqrt(sqr_avg)/(1 - beta2**t)**0.5 + eps), avg, sqr_avg


def other(p, g, avg, sqr_avg, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    "AdamW in another order: equal for real numbers, rounded in other places."
    avg     = avg     + (1-beta1)*(g - avg)
    sqr_avg = sqr_avg + (1-beta2)*(g*g - sqr_avg)
    return p - lr*(avg/(1 - beta1**t)) / (sqrt(sqr_avg/(1 - beta2**t)) + eps), avg, sqr_avg


def nesterov_again(p, g, buf, *, lr, mom=0.9):
    "Nesterov's momentum, with the rate inside the buffer's factor."
    buf = g + mom*buf
    return p - (lr*g + lr*mom*buf), buf


class Skips(AdamW):
    "AdamW that leaves out one step of `one_in`, by default none."
    one_in = calls = 0

    def step(self, closure=None):
        self.calls += 1
        if self.one_in and self.calls % self.one_in == 0: return None
        return super().step(closure)


def skips(params, lr, one_in):
    opt = Skips(params, lr)
    opt.one_in = one_in
    return opt


def untuned_adamw(params, lr): return AdamW(params, lr)
def untuned_nesterov(params, lr): return Nesterov(params, lr)


def cannot_be_built(params, lr): raise RuntimeError('this optimizer cannot be built')


class RaisesAtStep5(AdamW):
    "AdamW that raises at its fifth step."
    calls = 0

    def step(self, closure=None):
        self.calls += 1
        if self.calls == 5: raise RuntimeError('this rule fails at step 5')
        return super().step(closure)


def raises_at_step_5(params, lr): return RaisesAtStep5(params, lr)
def gives_nan(p, g, *, lr): return p - lr*g*float('nan')
def diverges(p, g, *, lr): return p + 1e3*lr*p
def needs_1000(p, g, *, lr): return p - 1e-4*lr*g


one.space = other.space = find_entrant('adamw').space
nesterov_again.space = find_entrant('nesterov').space
untuned_adamw.space = untuned_nesterov.space = dict(lr=1e-4)  # one rate, far too low
FAIL = cannot_be_built, raises_at_step_5, gives_nan, diverges
for rule in FAIL: rule.space = dict(lr=(1e-2, 1.))
needs_1000.space = dict(lr=(1., 1e4))
