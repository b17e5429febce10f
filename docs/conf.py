"""The documentation site: `make docs` builds it from the pages in this folder, which run while it is built, from the
docstrings of the library, and from the tables in bench/results."""
import ast
import logging
import re
from pathlib import Path

import jupyter_client

from miniai import __version__

HERE = Path(__file__).parent
SRC = HERE.parent/'src'/'miniai'
RESULTS = HERE.parent/'bench'/'results'

project, author, copyright = 'miniai', 'the miniai authors', 'the miniai authors, Apache-2.0'
version = release = __version__
extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.viewcode']
exclude_patterns = ['_build', '**.ipynb_checkpoints']
html_theme, html_title = 'furo', f'miniai {__version__}'
html_theme_options = dict(navigation_with_keys=True)
html_static_path, html_css_files = ['_static'], ['site.css']
default_role = 'code'  # docstrings write `names` as Markdown does
autodoc_member_order, autodoc_typehints = 'bysource', 'signature'
autodoc_default_options = {'members': True, 'undoc-members': False, 'show-inheritance': True,
                           'exclude-members': 'spec, mathematics, state_names, torch_group'}
autodoc_preserve_defaults = True
myst_enable_extensions = ['dollarmath', 'colon_fence']
myst_heading_anchors = 3
nb_execution_mode, nb_execution_timeout = 'cache', 600
nb_execution_raise_on_error = True
nb_merge_streams = True
logging.getLogger('traitlets').setLevel(logging.WARNING)  # not a line for each page that runs

REFERENCE = {  # the pages of the reference: title and packages or modules
    'learner': ('The loop', ['learner', 'events']),
    'optim': ('Optimizers', ['optim']),
    'steps': ('Schedules, averages, steps', ['steps']),
    'callbacks': ('Callbacks', ['callbacks']),
    'data': ('Data', ['data']),
    'metrics': ('Metrics', ['metrics']),
    'models': ('Models', ['models']),
    'diagnosis': ('Looking at training', ['diagnosis', 'report', 'trackers']),
    'inference': ('Using a trained model', ['inference']),
    'resume': ('Checkpoints and resume', ['resume', 'checkpoint']),
    'distributed': ('Several processes', ['distributed']),
    'kernels': ('Kernels', ['kernels']),
    'racing': ('Races', ['racing']),
    'jobs': ('Jobs and the command line', ['jobs', 'cli']),
    'basics': ('Devices, files, images, randomness', ['atomic', 'device', 'environment', 'images', 'randomness',
                                                      'show']),
}


def public_modules(name):
    "The modules of a package, or the module itself, that have public names."
    path = SRC/name
    files = sorted(path.glob('*.py')) if path.is_dir() else [path.with_suffix('.py')]
    for f in files:
        assigned = [n for n in ast.parse(f.read_text()).body if isinstance(n, ast.Assign | ast.AnnAssign)]
        names = [t.id for n in assigned for t in getattr(n, 'targets', [getattr(n, 'target', None)])
                 if isinstance(t, ast.Name)]
        if '__all__' in names and f.stem != '__init__':
            yield '.'.join(f.relative_to(SRC.parent).with_suffix('').parts)


def write(page, text):
    "Write a generated page, if it has changed, so that Sphinx builds it again only then."
    page.parent.mkdir(exist_ok=True)
    if not page.exists() or page.read_text() != text: page.write_text(text)


def write_reference(app):
    "Write a page for each row of REFERENCE: what its modules' docstrings say."
    for name, (title, packages) in REFERENCE.items():
        modules = [m for p in packages for m in public_modules(p)]
        parts = [f'## {m}\n\n```{{eval-rst}}\n.. automodule:: {m}\n```\n' for m in modules]
        write(HERE/'reference'/f'{name}.md', f'# {title}\n\n' + '\n'.join(parts))


def write_results(app):
    "Write a page for each table of bench/results, and one that lists them, newest first."
    tables = sorted(RESULTS.glob('*.md'), key=lambda p: p.stem.rsplit('_', 1)[::-1], reverse=True)
    for table in tables: write(HERE/'results'/table.name, table.read_text())
    names = '\n'.join(table.stem for table in tables)
    about = 'Tables that the scripts in `bench/` wrote, each with its machine, versions and numbers of runs.'
    write(HERE/'results'/'index.md', f'# Measurements\n\n{about}\n\n```{{toctree}}\n:maxdepth: 1\n{names}\n```\n')


def link_results(app, name, source):
    "On GitHub the tables are beside the pages; in the site they are pages."
    source[0] = re.sub(r'\]\(\.\./bench/results/', '](results/', source[0])


def drop_shown_output(app, name, source):
    "Pages show on GitHub what their code prints; here it stands below the code anyway, unless nothing runs."
    if app.config.nb_execution_mode != 'off':
        cell, shown = r'(^```\{code-cell\}[^\n]*\n.*?^```\n)', r'\n*^```text\n.*?^```\n'
        source[0] = re.sub(cell + shown, r'\1', source[0], flags=re.M | re.S)


class QuietKernelManager(jupyter_client.AsyncKernelManager):
    "Starts kernels that print errors only: each would warn that TCP within this machine is not encrypted."
    def format_kernel_cmd(self, extra_arguments=None):
        return super().format_kernel_cmd([*(extra_arguments or ()), '--IPKernelApp.log_level=ERROR'])


def setup(app):
    jupyter_client.AsyncKernelManager = QuietKernelManager  # what nbclient runs pages with
    app.connect('builder-inited', write_reference)
    app.connect('builder-inited', write_results)
    app.connect('source-read', link_results)
    app.connect('source-read', drop_shown_output)
