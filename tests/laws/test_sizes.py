"Laws about sizes: functions, docstrings and packages that a reader can take in."
import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT/'src'/'miniai'
FILES = sorted(SRC.rglob('*.py'))


def nodes(*kinds):
    "Every node of these kinds in the library, with a place to show: `file:line name`."
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, kinds):
                yield node, f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)} {getattr(node, 'name', '')}"


def body_length(function):
    "Lines of a function's body, without its docstring and the functions inside it."
    body = function.body[1:] if ast.get_docstring(function) else function.body
    inner = [n for statement in body for n in ast.walk(statement) if isinstance(n, ast.FunctionDef)]
    lines = {i for statement in body for i in range(statement.lineno, statement.end_lineno + 1)}
    return len(lines - {i for n in inner for i in range(n.lineno, n.end_lineno + 1)})


def test_nine_functions_in_ten_have_at_most_25_lines_and_none_has_more_than_45():
    lengths = sorted((body_length(f), place) for f, place in nodes(ast.FunctionDef))
    assert lengths[len(lengths)*9//10][0] <= 25, lengths[len(lengths)*9//10:]
    assert lengths[-1][0] <= 45, lengths[-1]


def test_docstrings_have_at_most_10_lines():
    documented = nodes(ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    lengths = {place: len((ast.get_docstring(node) or '').splitlines()) for node, place in documented}
    too_long = {place: n for place, n in lengths.items() if n > 10}
    assert not too_long, f"lines of docstrings: {too_long}"


def test_no_package_but_resume_holds_more_than_15_percent_of_the_lines():
    lines = Counter()
    for path in FILES: lines[path.relative_to(SRC).parts[0]] += len(path.read_text().splitlines())
    shares = {name: n/lines.total() for name, n in lines.items() if name != 'resume'}
    too_large = {name: f'{share:.1%}' for name, share in shares.items() if share > 0.15}
    assert not too_large, f"share of the library's lines: {too_large}"


def test_each_source_file_has_a_test_file_at_the_mirrored_place():
    sources = [path.relative_to(SRC) for path in FILES if path.stem not in ('__init__', '__main__')]
    mirrored = [f"tests/{path.with_name(f'test_{path.name}')}" for path in sources]
    missing = [path for path in mirrored if not (ROOT/path).exists()]
    assert not missing, f"write {', '.join(missing)}"
