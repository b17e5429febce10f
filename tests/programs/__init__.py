"""Small training programs as users write them, each with one kind of state of its own. Tests and bench/programs.py stop
and resume every one of them.

A program is a function that returns a Learner. The decorator says how to see its state, what a report about it must
name, and what should happen when it is resumed.
"""
from dataclasses import dataclass
from importlib import import_module

TOPICS = ['networks', 'callbacks', 'options', 'collections', 'randomness', 'models', 'losses', 'datasets', 'workers',
          'samplers', 'optimizers', 'schedules', 'functions', 'metrics', 'unsavable', 'identity']
# One of these for each program, in turn: the phase, epoch and batch after which it is stopped
STOPS = [('train', 1, 2), ('train', 0, 3), ('valid', 0, 0), ('train', 1, 0), ('between', 0, 0), ('train', 1, 4)]
PROGRAMS = {}


@dataclass
class Program:
    name: str
    make: object
    kind: str  # one line: which state it has
    state: object = None  # learn -> a dict of values that must be the same in the end
    names: str = ''  # a regular expression: a report about this state names one of these
    expect: str = 'identical'  # the acceptable outcomes, with | between them
    stop: tuple = ()
    epochs: int = 2
    module: str = ''


def program(names='', state=None, stop=None, **options):
    "Decorator: add a function that returns a Learner to the table."
    def add(make):
        assert make.__name__ not in PROGRAMS
        used = stop or STOPS[len(PROGRAMS) % len(STOPS)]
        PROGRAMS[make.__name__] = Program(make.__name__, make, make.__doc__, state, names, stop=used,
                                          module=make.__module__, **options)
        return make
    return add


def table():
    "All programs, by name. Imports their modules, but runs none of them."
    for topic in TOPICS: import_module(f'programs.{topic}')
    return PROGRAMS
