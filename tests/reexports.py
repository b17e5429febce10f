"A check for the modules that notebooks import: they pass on names of the library."
from importlib import import_module


def check_reexports(module, homes, own=''):
    """Check that a star import of `miniai.<module>` gives exactly the names in `homes` and `own`, and that each name in
    `homes`, a dict from module to names, is that module's object. 'a=b' means that `b` is called `a` here."""
    expected, found = {}, {}
    for home, names in homes.items():
        for name in names.split():
            here, _, there = name.partition('=')
            expected[here] = getattr(import_module(f'miniai.{home}'), there or here)
    exec(f'from miniai.{module} import *', found)
    assert set(found) - {'__builtins__'} == {*expected, *own.split()}
    for name, o in expected.items(): assert found[name] is o, name
