"""Update rules as their equations, from simple to hard: pure functions of numbers, which know no engine.

A rule takes a parameter `p`, its gradient `g`, then state by name, and keyword-only hyperparameters, with `t` the
parameter's own step count from 1; it returns the new parameter and the new state. It runs on Python floats and on
tensors alike. Decay is not its business.
"""
from collections.abc import Callable
from typing import Any

from .math import sqrt

__all__ = ['sgd', 'momentum', 'rmsprop', 'adam', 'starts']


def starts(**states: Callable[[Any, Any], Any]) -> Callable:
    """Decorator: says what a rule's state is before its first step, as a function of `(p, g)`. State that is not named
    starts at zero."""
    def decorate(rule: Callable) -> Callable:
        rule.starts = states
        return rule
    return decorate


def sgd(p, g, *, lr):
    "Stochastic gradient descent (Robbins & Monro 1951)."
    return p - lr*g


def momentum(p, g, avg, *, lr, mom=0.9):
    "SGD along an exponential average of the gradient: momentum dampened by 1-mom (Polyak 1964, as in the course)."
    avg = mom*avg + (1-mom)*g
    return p - lr*avg, avg


@starts(sqr_avg=lambda p, g: g*g)
def rmsprop(p, g, sqr_avg, *, lr, sqr_mom=0.99, eps=1e-5):
    "RMSProp, its average starting at the first squared gradient (Tieleman & Hinton 2012, as in the course)."
    sqr_avg = sqr_mom*sqr_avg + (1-sqr_mom)*g*g
    return p - lr*g / (sqrt(sqr_avg) + eps), sqr_avg


def adam(p, g, avg, sqr_avg, *, t, lr, beta1=0.9, beta2=0.99, eps=1e-5):
    "Adam with `eps` inside the root, as in the course (Kingma & Ba 2014, algorithm 1)."
    avg     = beta1*avg     + (1-beta1)*g      # m_t
    sqr_avg = beta2*sqr_avg + (1-beta2)*g*g    # v_t
    m = avg     / (1 - beta1**t)
    v = sqr_avg / (1 - beta2**t)
    return p - lr*m / sqrt(v + eps), avg, sqr_avg
