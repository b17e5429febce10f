"The notebook's updates in numpy and double precision, an oracle that uses nothing of miniai."
import numpy as np


def sgd(p, g, s, t, *, lr, wd=0.):
    p = p * (1 - lr*wd)
    return p - g*lr


def momentum(p, g, s, t, *, lr, wd=0., mom=0.9):
    p = p * (1 - lr*wd)
    s['grad_avg'] = s.get('grad_avg', np.zeros_like(g))*mom + g*(1-mom)
    return p - lr*s['grad_avg']


def rmsprop(p, g, s, t, *, lr, wd=0., sqr_mom=0.99, eps=1e-5):
    p = p * (1 - lr*wd)
    s['sqr_avg'] = s.get('sqr_avg', g**2)*sqr_mom + g**2*(1-sqr_mom)
    return p - lr*g/(np.sqrt(s['sqr_avg']) + eps)


def adam(p, g, s, t, *, lr, wd=0., beta1=0.9, beta2=0.99, eps=1e-5):
    p = p * (1 - lr*wd)
    s['avg'] = beta1*s.get('avg', np.zeros_like(g)) + (1-beta1)*g
    unbias_avg = s['avg'] / (1 - beta1**t)
    s['sqr_avg'] = beta2*s.get('sqr_avg', np.zeros_like(g)) + (1-beta2)*g**2
    unbias_sqr_avg = s['sqr_avg'] / (1 - beta2**t)
    return p - lr*unbias_avg/np.sqrt(unbias_sqr_avg + eps)


FORMULAS = dict(SGD=sgd, Momentum=momentum, RMSProp=rmsprop, Adam=adam)
MOVING = dict(SGD={}, Momentum=dict(mom=(.5, .99)), RMSProp=dict(sqr_mom=(.8, .999), eps=(1e-6, 1e-3)),
              Adam=dict(beta1=(.5, .95), beta2=(.9, .999), eps=(1e-6, 1e-3)))


def random_hypers(rng, name):
    "Random hyperparameters for one step: lr over two decades, a decay that is never 0, and the rule's own."
    own = {h: rng.uniform(*limits) for h, limits in MOVING[name].items()}
    return dict(lr=10**rng.uniform(-4, -2), wd=rng.uniform(.05, .5)) | own


def relative_error(a, b):
    "max|a-b| / max|b|, and 0 for empty arrays."
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.abs(a-b).max() / np.abs(b).max()) if b.size else 0.
