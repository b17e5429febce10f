"The command: a race, its plan, and its verdict from race.json."
import pytest

import races
from miniai.cli import main
from miniai.cli.arguments import parse
from miniai.jobs.config import ConfigError
from miniai.racing.job import RaceConfig, run_race

OPTIONS = dict(rules=('races:descent',), task='races:tiny', baselines='nesterov', trials=2, seeds=3)


def test_the_arguments_are_the_options():
    config = parse(['race', 'a.py:mine', 'adamw', '--task', 'mlp,logistic', '--budget', '2h', '--plan'])
    assert config == RaceConfig(rules=('a.py:mine', 'adamw'), task='mlp,logistic', budget='2h', plan=True)
    assert parse(['race', 'lion', '--trials', '4', '--seeds', '9', '--compare', 'baselines']) == \
        RaceConfig(rules=('lion',), trials=4, seeds=9, compare='baselines')


def test_a_race_prints_its_plan_and_answer_and_its_verdict_is_printed_again(tmp_path, capsys):
    run_race(RaceConfig(**OPTIONS, out=str(tmp_path)))
    out = capsys.readouterr().out
    assert out.startswith('20 runs, about ')
    assert 'comparison: 12 of 12 runs' in out
    assert out.endswith(f'race: {tmp_path}/race.html, race.md and race.json\n')
    run_race(RaceConfig(verdict=str(tmp_path/'race.json')))
    assert capsys.readouterr().out.strip() in out


def test_the_page_of_a_verdict_is_written_to_a_file_or_folder_but_over_no_other_file(tmp_path, capsys):
    run_race(RaceConfig(**OPTIONS, out=str(tmp_path/'race')))
    again = lambda html: run_race(RaceConfig(verdict=str(tmp_path/'race'/'race.json'), html=str(html)))  # noqa: E731
    again(tmp_path)
    assert capsys.readouterr().out.endswith(f'{tmp_path}/race.html\n')
    again(tmp_path/'race.html')
    without_date = [(tmp_path/nm).read_text().split('<footer>')[0] for nm in ('race.html', 'race/race.html')]
    assert without_date[0] == without_date[1]
    (tmp_path/'mine.html').write_text('mine')
    with pytest.raises(ConfigError, match=r'choose another file with --html'): again(tmp_path/'mine.html')
    with pytest.raises(ConfigError, match='--html needs --verdict'): run_race(RaceConfig(rules=('lion',), html='a'))


def test_a_plan_runs_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_race(RaceConfig(**OPTIONS, plan=True))
    assert capsys.readouterr().out.startswith('20 runs')
    assert not [*tmp_path.iterdir()]


def test_lengths_are_shares_of_the_steps(capsys):
    run_race(RaceConfig(**OPTIONS, plan=True, lengths='0.5'))
    assert 'tiny (8 steps)' in capsys.readouterr().out


@pytest.mark.parametrize('text', ['', '{"a', '{}', '{"protocol": {}, "runs": [], "rules": {}, "tasks": {}}'])
def test_a_damaged_race_is_an_error_of_the_options_that_names_it(text, tmp_path):
    (tmp_path/'race.json').write_text(text)
    with pytest.raises(ConfigError, match=r'race\.json is '): run_race(RaceConfig(verdict=str(tmp_path/'race.json')))


def test_what_a_task_raises_is_a_failure_and_no_invalid_option(tmp_path, capsys):
    arguments = ['races:descent', '--task', 'races:fails', '--trials', '1', '--seeds', '2', '--out', str(tmp_path)]
    with pytest.raises(SystemExit, match='1'): main(['race', *arguments])
    assert 'miniai: error: the task tiny fails before training, on its part train: ' in capsys.readouterr().err


def test_an_invalid_option_is_an_error_of_the_options():
    with pytest.raises(ConfigError, match='a race needs a rule'): run_race(RaceConfig())
    with pytest.raises(ConfigError, match='without arguments'): run_race(RaceConfig(rules=('lion',), task='races:data'))
    with pytest.raises(ConfigError, match='--out must name a folder'): run_race(RaceConfig(**OPTIONS, out=''))
    for lengths, said in (('half', '--lengths must be numbers'), ('0.5,2', 'shares of a task'), ('', 'lengths')):
        with pytest.raises(ConfigError, match=said): run_race(RaceConfig(rules=('lion',), lengths=lengths))
    with pytest.raises(ConfigError, match='a duration such as'): run_race(RaceConfig(rules=('lion',), budget='soon'))


def test_a_race_that_is_stopped_says_in_which_run(tmp_path, capsys, monkeypatch):
    "So that a rule that never ends a step is found."
    def hangs(params): raise KeyboardInterrupt
    monkeypatch.setattr(races.FailsLater, 'step', hangs)
    with pytest.raises(SystemExit, match='130'):
        main(['race', 'races:FailsLater', '--task', 'races:tiny', '--out', str(tmp_path/'race')])
    assert capsys.readouterr().err == 'stopped in a run of FailsLater on tiny (the same command continues the race)\n'
