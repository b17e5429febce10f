"From command-line arguments to a job's configuration."
import os
import shlex
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import fields
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from miniai.jobs.checkpoint import GatherConfig, ShowConfig, VerifyConfig
from miniai.jobs.config import JOBS, ConfigError, JobConfig, TrainConfig, check_text, suggestion
from miniai.jobs.report import ReportConfig
from miniai.jobs.script import ScriptConfig
from miniai.jobs.use import EvaluateConfig, ExportConfig, PredictConfig
from miniai.racing.job import RaceConfig, RaceOptions

__all__ = ['completion', 'parse']

ABOUT = """Train PyTorch models with accelerated SGD.

Options can also come from a TOML file: miniai train --config FILE.toml

miniai --version prints the version.

miniai --completion bash, or zsh, or fish prints a script for that shell."""
SHELLS = 'bash', 'zsh', 'fish'
CHECKPOINT_COMMANDS = {'verify': VerifyConfig, 'show': ShowConfig, 'gather': GatherConfig}
USES = {'evaluate': EvaluateConfig, 'predict': PredictConfig, 'export': ExportConfig, 'script': ScriptConfig}
OPTION_FIELDS = ('opt', 'net')  # --opt.beta2 0.95 is an option of the optimizer


def parse(args: Sequence[str]) -> JobConfig | VerifyConfig | ShowConfig:
    "The configuration of the job that `args` ask for. ConfigError or SystemExit(2) if they are invalid."
    try:
        import tyro
    except ImportError: raise ConfigError("the command line needs tyro: pip install 'miniai-torch[cli]'") from None
    if os.environ.get('NO_COLOR'): tyro._experimental_options['ansi_codes'] = False
    defaults, given = {name: cls() for name, cls in JOBS.items()}, frozenset()
    command, *rest = args or ['--help']
    if not command.startswith('-'): _check_word('command', command, [*JOBS, *USES, 'report', 'race', 'checkpoint'])
    if command == 'checkpoint' and rest and not rest[0].startswith('-'):
        _check_word('checkpoint command', rest[0], CHECKPOINT_COMMANDS)
    if command in JOBS:
        rest = _joined_options(rest)
        args = [command, *rest]
        texts = _option_texts(rest)
        _check_options(command, texts)
        if texts.get('config'): defaults[command] = JOBS[command].from_toml(Path(texts['config']))
        given = frozenset(name.removeprefix('no_') for name in texts)
    config = tyro.cli(_commands(defaults), args=args or ['--help'], prog='miniai', description=ABOUT, config=(
        tyro.conf.OmitSubcommandPrefixes, tyro.conf.PositionalRequiredArgs, tyro.conf.DisallowNone))
    if isinstance(config, TrainConfig): config.given = defaults['train'].given | given
    return config


def completion(shell: str) -> str:
    "The script that completes commands and options in a shell: bash, zsh or fish. ConfigError for another one."
    if shell not in SHELLS: raise ConfigError(f"--completion must be bash, zsh or fish, got {shell!r}")
    script = StringIO()
    with redirect_stdout(script), suppress(SystemExit): parse(['--tyro-write-completion', shell, '-'])
    lines = script.getvalue().splitlines()  # tyro prints each line of a help text as a completion of its own
    return '\n'.join(line.replace(r'\n', ' ') if line.startswith('COMPLETION_SPEC') else line for line in lines)


def _joined_options(args: Sequence[str]) -> list[str]:
    "`args` with --opt.a 1 --opt.b 2 as one --opt 'a=1 b=2', and --track a --track b as one --track a,b. ConfigError."
    found, rest, trackers, args = {}, [], [], iter(args)
    for arg in args:
        if arg == '--track' or arg.startswith('--track='):
            trackers.append(arg.removeprefix('--track=') if '=' in arg else next(args, ''))
            if not trackers[-1]: raise ConfigError("--track needs a value, such as tensorboard")
            continue
        field, dot, option = arg.removeprefix('--').partition('.')
        if not (arg.startswith('--') and dot and field in OPTION_FIELDS):
            rest.append(arg)
            continue
        option, equals, value = option.partition('=')
        if not equals: value = next(args, None)
        if value is None: raise ConfigError(f"--{field}.{option} needs a value")
        found.setdefault(field, []).append(shlex.quote(f"{option.replace('-', '_')}={value}"))
    found = {field: ' '.join(words) for field, words in found.items()}
    if trackers: found['track'] = ','.join(trackers)
    return [*rest, *(f'--{field}={text}' for field, text in found.items())]


def _check_word(what: str, word: str, known: Iterable[str]) -> None:
    if word in known: return
    raise ConfigError(f"unknown {what} {word!r}; {suggestion(word, known) or 'choose from ' + ', '.join(known)}")


def _option_texts(args: Sequence[str]) -> dict[str, str | None]:
    "The options in `args`, with underscores in their names, and the text that follows each. The last one wins."
    texts = {}
    for arg, following in pairwise([*args, None]):
        if not arg.startswith('--'): continue
        name, equals, text = arg[2:].partition('=')
        if not equals: text = None if (following or '--').startswith('--') else following
        texts[name.replace('-', '_')] = text
    return texts


def _check_options(command: str, texts: dict[str, str | None]) -> None:
    "ConfigError for an unknown option or an invalid value, in our words and with a suggestion, before tyro sees it."
    cls = JOBS[command]
    flags = {f.name for f in fields(cls) if f.type is bool}
    known = {f.name for f in fields(cls)} | {f'no_{name}' for name in flags}
    for name, text in texts.items():
        if name == 'help': continue
        if name not in known:
            near = suggestion(name.replace('_', '-'), [nm.replace('_', '-') for nm in known], '--{}')
            raise ConfigError(f"miniai {command} has no option --{name.replace('_', '-')}; "
                              f"{near or f'see miniai {command} --help'}")
        if text is not None and name.removeprefix('no_') not in flags: check_text(cls, name, text)


def _commands(defaults: dict[str, JobConfig]) -> Any:
    "The type that tells tyro all commands and their options."
    import tyro
    jobs = [Annotated[type(config), tyro.conf.subcommand(name, default=config)] for name, config in defaults.items()]
    train, lr_find, prove = jobs
    files = tyro.conf.arg(metavar='PATH [PATH ...]', help='The checkpoints.', help_behavior_hint='(required)')
    def verify_config(path: Annotated[tuple[Path, ...], files]) -> VerifyConfig: return VerifyConfig(path)
    about = dict(description=VerifyConfig.__doc__, constructor=verify_config)
    verify = Annotated[VerifyConfig, tyro.conf.subcommand('verify', **about)]
    show = Annotated[ShowConfig, tyro.conf.subcommand('show')]
    gather = Annotated[GatherConfig, tyro.conf.subcommand('gather')]
    evaluate, predict, export, script = (Annotated[cls, tyro.conf.subcommand(name)] for name, cls in USES.items())
    checkpoint = Annotated[verify | show | gather, tyro.conf.subcommand('checkpoint', description=(
        'Verify checkpoints, show what is in one, or gather a sharded one.'))]
    report, race = _report_command(), _race_command()
    return train | lr_find | prove | evaluate | predict | export | script | report | race | checkpoint


def _report_command() -> Any:
    import tyro
    folders = tyro.conf.arg(metavar='[RUN ...]', help='The folders of runs.',
                             help_behavior_hint='(default: the latest run)')
    file = tyro.conf.arg(help='The file to write. Default: report.html in the run folder, of several runs in this one.')
    def report_config(runs: tyro.conf.Positional[Annotated[tuple[Path, ...], folders]] = (),
                      out: Annotated[str, file] = '') -> ReportConfig: return ReportConfig(runs, out)
    return Annotated[ReportConfig, tyro.conf.subcommand('report', description=ReportConfig.__doc__,
                                                        constructor=report_config)]


def _race_command() -> Any:
    import tyro
    names = tyro.conf.arg(metavar='[RULE ...]', help='Names of --optimizer, FILE.py:rule or module:rule. LABEL=RULE '
                                                     'gives a rule another name.', help_behavior_hint='')
    defaults = RaceOptions()
    def race_config(rules: tyro.conf.Positional[Annotated[tuple[str, ...], names]] = (),
                    options: Annotated[RaceOptions, tyro.conf.arg(name='')] = defaults) -> RaceConfig:
        return RaceConfig(rules=rules, **vars(options))
    return Annotated[RaceConfig, tyro.conf.subcommand('race', description=RaceConfig.__doc__, constructor=race_config)]
