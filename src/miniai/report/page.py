"Writes the report of one run, or of several side by side: one HTML file that needs nothing else."
import os
import re
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from miniai.atomic import atomic_write
from miniai.report.blocks import Section, text
from miniai.report.compare import comparison
from miniai.report.record import STATES, Run, read_run
from miniai.report.story import sections

__all__ = ['REPORT_FILE', 'fitting', 'page', 'write_page', 'write_report']

REPORT_FILE, LARGEST = 'report.html', 2_000_000
_LEFT_OUT = (), ('layers',), ('examples',), ('curves', 'time', 'data', 'model', 'environment')
_UNPRINTABLE = re.compile('[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]')
_ABOUT = dict(running='It was running when this page was written.',
              killed='Its process has ended without saying how: it was killed. What it recorded until then is shown.',
              stopped='It was stopped before its end.', unknown='It is not known whether it runs or how it ended.')


def write_report(runs: Sequence[str | os.PathLike], path: str | os.PathLike) -> Path:
    """Read the folders of `runs` and write their report to the file `path`, completely or not at all. FileNotFoundError
    for a folder without a run, ImportError without Jinja2."""
    return write_page(page([read_run(run) for run in runs]), Path(path))


def write_page(html: str, path: Path) -> Path:
    "Write a page, completely or not at all."
    with atomic_write(path) as part: part.write_text(html, 'utf-8', newline='\n')
    return path


def page(runs: Sequence[Run]) -> str:
    "The report of runs as HTML, below 2 MB: if it would be larger, sections of single runs are left out."
    title = runs[0].name if len(runs) == 1 else f'{len(runs)} runs'
    shown = [_shown(run, f'r{i}', run.name) for i, run in enumerate(runs, 1)]
    about = dict(title=title, kind='report', brand='training report', lead='', runs=shown,
                 sections=comparison(runs) if len(runs) > 1 else [])
    return fitting(about, [section for run in shown for section in run['sections']], _LEFT_OUT,
                   'A report of this run alone has it.')


def fitting(about: dict[str, Any], sections: Sequence[Section], left_out: Sequence[Sequence[str]], where: str) -> str:
    """A page as HTML, below 2 MB: as long as it is larger, those of `sections` that the next of `left_out` names are
    left out; `where` says what has them."""
    for names in left_out:
        for section in (section for section in sections if section.name in names):
            section.blocks = [text(f'Left out, so that this page stays below 2 MB. {where}')]
        html = _template().render(about, written=time.strftime('%Y-%m-%d %H:%M'))
        html = _UNPRINTABLE.sub('\ufffd', html)
        if len(html.encode()) < LARGEST: break
    return html


def _shown(run: Run, name: str, title: str) -> dict[str, Any]:
    made = sections(run, name)  # which may find problems
    return dict(name=name, title=title, state=run.state, words=STATES[run.state], about=_ABOUT.get(run.state),
                sections=made, problems=run.problems, summary=_summary(run))


def _summary(run: Run) -> str:
    "One sentence about the run."
    c, data = run.config, run.data.get('source') or run.config.get('data')
    by, schedule = c.get('optimizer') or run.model.get('optimizer'), c.get('schedule')
    return ''.join(map(str, [
        f"The network {run.model.get('name') or c.get('model') or '(unknown)'}", f', trained on {data}' if data else '',
        f', by {by}' if by else '', f' with the schedule {schedule}' if schedule else '', '.']))


def _template() -> Any:
    try:
        import jinja2
    except ImportError as e: raise ImportError("the report needs Jinja2: pip install 'miniai-torch[report]'") from e
    return _loaded(jinja2)


@cache
def _loaded(jinja2: ModuleType) -> Any:
    from markupsafe import Markup
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent/'templates'), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters['drawn'] = Markup  # SVG of this package, which escapes what it draws
    return environment.get_template('page.html')
