"The rules of a race: found by name or in a file, with the space in which each is tuned, and the configurations tried."
import hashlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

from miniai.jobs.registry import OPTIMIZERS
from miniai.models.by_name import function_at
from miniai.optim.optimizer import RuleOptimizer, optimizer
from miniai.optim.spec import REQUIRED, rule_name
from miniai.racing.code import INSTALLED, code_of, imported_files

__all__ = ['BASELINES', 'Entrant', 'Space', 'configurations', 'find_entrant']

BASELINES = 'adamw', 'nesterov', 'muon'
DECAYS = 1e-4, 0.3    # the space of the weight decay, for every rule that declares none
RATES  = 1e-4, 1.     # of the learning rate, for a rule that is not in the registry and declares none
AROUND = 0.1, 10.     # of it for rules of the registry, as multiples of their default
MOST = 16             # hyperparameters in a space: the dimensions of the Sobol sequence

Space = Mapping[str, Any]


@dataclass(frozen=True)
class Entrant:
    """A rule in a race: `build(params, lr, **hypers)` makes its optimizer. `space` maps hyperparameters to a pair
    (low, high), searched on a log scale, in whole numbers if both are whole; to a list of values; or to one fixed
    value. `code` is its source text, with the user's modules that it imports, or the name of a rule of the library.
    `given` is what a command calls it, '' for an object."""
    name: str
    build: Callable[..., Any]
    space: Space
    code: str
    given: str = ''

    @cached_property
    def digest(self) -> str:
        "Names the rule by its code."
        return hashlib.sha256(self.code.encode()).hexdigest()[:16]


def find_entrant(given: Any) -> Entrant:
    """The entrant that `given` names: a rule of `miniai train`, 'FILE.py:rule' or 'module:rule', each perhaps with a
    label, as in 'twin=adamw'; or a rule function or optimizer class. The rule's attribute `space` declares what is
    tuned. ValueError if there is none, or for a space that does not fit it."""
    if not isinstance(given, str): return _entrant(rule_name(given), given)
    label, name = _labeled(given)
    if name in OPTIMIZERS:
        low, high = (OPTIMIZERS[name].lrs['warmup-cosine']*factor for factor in AROUND)
        return Entrant(label or name, OPTIMIZERS[name].build, dict(lr=(low, high), wd=DECAYS), name, given)
    if ':' not in name: raise ValueError(f"unknown rule {name!r}: choose from {', '.join(OPTIMIZERS)}, or give "
                                         f"FILE.py:rule or module:rule")
    return replace(_entrant(label or name.rpartition(':')[2], _load(name)), given=given)


def _labeled(given: str) -> tuple[str, str]:
    "The label, '' without one, and the name. The path of a file may have an '=' too."
    label, equals, name = given.partition('=')
    if not equals or '/' in label or Path(given.rpartition(':')[0]).is_file(): return '', given
    if not label: raise ValueError(f"{given!r} has no label before '='")
    return label, name


def _load(name: str) -> Any:
    "The object at 'FILE.py:rule' or 'module:rule'. A file is read again at each call, with what it imports beside it."
    file, _, rule = name.rpartition(':')
    if not file.endswith('.py'): return function_at(name)
    path = Path(file).resolve()
    if not path.is_file(): raise ValueError(f"no file {file}, which should hold the rule {rule}")
    beside, folder = imported_files(path), str(path.parent)
    _forget(beside, path.parent)
    unique = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f'{path.stem}_{unique}', path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, folder)  # as `python FILE.py` does
    try: spec.loader.exec_module(module)
    except Exception as e:
        packaged = (path.parent/'__init__.py').is_file()
        raise ValueError(f"cannot import {file}: {type(e).__name__}: {e}" + packaged*(
            f". The file is in a package: give its module, such as {path.parent.name}.{path.stem}:{rule}")) from e
    finally:
        sys.path.remove(folder)
        if folder not in sys.path: sys.path.append(folder)  # for imports in functions
    if callable(found := getattr(module, rule, None)): return found
    raise ValueError(f"{file} has no rule {rule}")


def _forget(beside: set[Path], folder: Path) -> None:
    "Let imports in `folder` read the files `beside` again, rather than find modules of their names in other folders."
    names = {f.relative_to(folder).parts[0].removesuffix('.py') for f in beside if f.is_relative_to(folder)}
    names -= {'miniai', '__main__'}
    for nm, module in [*sys.modules.items()]:
        file, named = Path(getattr(module, '__file__', None) or 'none'), nm.partition('.')[0] in names
        if file in beside or (named and not any(file.is_relative_to(place) for place in INSTALLED)):
            sys.modules.pop(nm, None)


def _entrant(name: str, rule: Any) -> Entrant:
    if not callable(rule): raise ValueError(f"a rule must be a function, a class or a name, got {rule!r}")
    inner, takes = _inner(rule), _arguments(rule)
    try: build = optimizer(rule) if inspect.isfunction(inner) and [*takes][:2] == ['p', 'g'] else rule
    except TypeError as e: raise ValueError(str(e)) from e
    ours = isinstance(_inner(build), type) and issubclass(_inner(build), RuleOptimizer)
    decay = 'wd' if ours else _decay(inner, takes)
    tuned = dict(lr=RATES) | (dict(wd=DECAYS) if decay and decay not in _given(rule) else {})
    space = getattr(rule, 'space', None) or getattr(inner, 'space', None) or tuned
    _check_space(name, space)
    if ours: _check_hypers(name, _inner(build), space, _given(build))
    if decay == 'weight_decay' and 'wd' in space: build = partial(_torch_names, build)
    elif not ours: _check_call(name, rule, space)
    return Entrant(name, build, space, code_of(rule, name))


def _inner(rule: Any) -> Any:
    "The function or class in a partial."
    return _inner(rule.func) if isinstance(rule, partial) else rule


def _given(rule: Any) -> set[str]:
    "The arguments that a partial gives by name."
    return {*rule.keywords} if isinstance(rule, partial) else set()


def _arguments(rule: Any) -> Mapping[str, inspect.Parameter]:
    try: return inspect.signature(rule).parameters
    except ValueError: return {}  # some functions in C have none


def _decay(inner: Any, takes: Mapping[str, inspect.Parameter]) -> str:
    "What a function or class that makes an optimizer calls the weight decay; '' if it takes none."
    anything = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    if anything and 'wd' not in takes: return 'weight_decay' if isinstance(inner, type) else 'wd'
    return next((nm for nm in ('wd', 'weight_decay') if nm in takes), '')


def _torch_names(build: Callable[..., Any], params: Any, lr: float, wd: float = 0., **hypers: Any) -> Any:
    "An optimizer of torch, which calls the decay `weight_decay`."
    return build(params, lr=lr, weight_decay=wd, **hypers)


def _check_call(name: str, build: Callable[..., Any], space: Space) -> None:
    "ValueError for a builder that cannot be called with what its space has."
    try: inspect.signature(build).bind((), **space)
    except TypeError as e:
        raise ValueError(f"cannot build {name} from parameters, {', '.join(space)}: {e}. The first arguments of a rule "
                         f"must be called p and g") from e
    except ValueError: return  # no signature


def _check_space(name: str, space: Any) -> None:
    if not isinstance(space, Mapping) or 'lr' not in space:
        raise ValueError(f"the space of {name} must be a dict with 'lr', such as dict(lr=(1e-4, 1)), got {space!r}")
    if len(space) > MOST: raise ValueError(f"the space of {name} has {len(space)} hyperparameters, more than {MOST}")
    for hyper, values in space.items():
        if isinstance(values, tuple) and not _is_range(values):
            raise ValueError(f"the space of {name} has {hyper}={values!r}: give (low, high) above 0, a list of values "
                             f"or one value")
        if isinstance(values, list) and not values: raise ValueError(f"the space of {name} has no values for {hyper}")
        try: json.dumps(values, allow_nan=False)
        except (TypeError, ValueError) as e:
            raise ValueError(f"the space of {name} has {hyper}={values!r}, which JSON cannot hold: {e}") from e


def _is_range(values: tuple) -> bool:
    return len(values) == 2 and all(isinstance(v, int | float) for v in values) and 0 < values[0] < values[1]


def _check_hypers(name: str, cls: type[RuleOptimizer], space: Space, given: set[str]) -> None:
    known = {nm: p.default for nm, p in cls.__signature__.parameters.items() if nm != 'params'}
    unknown = [nm for nm in space if nm not in known]
    if unknown: raise ValueError(f"the space of {name} has {', '.join(unknown)}, which the rule does not take: it has "
                                 f"{', '.join(nm for nm in cls.spec.hypers)} and wd")
    missing = [nm for nm, default in known.items() if default is REQUIRED and nm not in {*space, *given}]
    if missing: raise ValueError(f"the space of {name} lacks {', '.join(missing)}, which has no default")


def configurations(space: Space, n: int) -> list[dict[str, Any]]:
    """The first `n` configurations of a space: the points of one scrambled Sobol sequence (Sobol 1967, Owen 1998), the
    same for every rule; its first dimension is lr, its second wd. More configurations begin with the same ones."""
    columns = sorted(space, key=lambda nm: (nm != 'lr', nm != 'wd', nm))
    return [{nm: _placed(nm, space[nm], u) for nm, u in zip(columns, point, strict=False)} for point in _sobol(n)]


@lru_cache
def _sobol(n: int) -> Sequence[Sequence[float]]:
    from scipy.stats import qmc
    return qmc.Sobol(MOST, scramble=True, rng=0).random_base2(max(n - 1, 1).bit_length())[:n].tolist()


def _placed(name: str, values: Any, u: float) -> Any:
    "The value at `u`, from 0 to 1; a whole number between whole numbers, except for rates and decays."
    if isinstance(values, list): return values[min(int(u*len(values)), len(values) - 1)]
    if not isinstance(values, tuple): return values
    value = values[0]*(values[1]/values[0])**u
    whole = all(isinstance(v, int) for v in values) and name not in ('lr', 'wd', 'weight_decay')
    return round(value) if whole else float(f'{value:.4g}')
