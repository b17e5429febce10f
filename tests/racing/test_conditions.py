"What a race was, for who checks or repeats it: code, spaces and commands."
import shlex

import pytest

from miniai.cli.arguments import parse
from miniai.racing.answer import Answer
from miniai.racing.conditions import MOST_CODE, configurations, protocol, repeat, sources
from miniai.racing.job import RaceConfig
from raced import record


def test_rules_of_one_file_share_its_code_and_those_of_the_library_have_a_name():
    blocks = sources(Answer(record(codes=dict(new='f\ncode', wild='wild\ncode')))).blocks
    assert blocks[0].content['line'] == 'new (f), wild'
    assert list(blocks[0].content['blocks'][0].content['items'].values()) == ['code']
    assert blocks[1].content['words'] == 'Rules of miniai 0.3.0 or torch 2.10, by name: old.'


def test_a_rule_that_is_in_no_file_has_its_source():
    block, _ = sources(Answer(record(codes=dict(new='def new(p, g, *, lr): return p - lr*g\n')))).blocks
    assert block.content['line'] == 'new'
    assert list(block.content['blocks'][0].content['items'].values()) == ['def new(p, g, *, lr): return p - lr*g\n']


def test_a_very_long_file_is_cut():
    block, _ = sources(Answer(record(codes=dict(new='new\n' + 'x'*(MOST_CODE + 1))))).blocks
    code, = block.content['blocks'][0].content['items'].values()
    assert code == 'x'*MOST_CODE + '\n… race.json has the rest'


def test_hyperparameters_that_differ_between_tasks_are_beside_the_figure():
    given = record(trials=1)
    for r in given['runs']:
        if r['steps'] == 160: r['config']['lr'] = .5
    given['runs'][0]['config']['lr'] = .25  # tried, and not what was compared, at lr .02
    table = configurations(Answer(given)).blocks[1].content['blocks'][0].content
    assert table['head'] == ['no.', 'wd', 'easy, 40', 'easy, 160']
    assert [c.text.replace('\u00a0', ' ') for c in table['rows'][0]] == [
        '1', '0.125', '0.375 at lr 0.25', '0.3563 at lr 0.5 ★']


def test_the_protocol_describes_the_tasks():
    assert protocol(Answer(record())).blocks[2].content['items']['easy'].text == 'the task easy; loss, 160 steps'


@pytest.mark.parametrize(('lengths', 'said'), [((40, 160), '0.25,1'), ((80, 120, 160), '0.5,0.75,1.0')])
def test_the_command_repeats_the_race(lengths, said):
    given = record(lengths=lengths)
    for kind in ('rules', 'tasks'):
        for nm, found in given[kind].items(): found['given'] = f'my {nm}.py:{nm}' if kind == 'rules' else f'm:{nm}'
    command = repeat(Answer(given)).blocks[0].content['items']['The same race again']
    config = parse(shlex.split(command)[1:])
    assert config == RaceConfig(rules=('my new.py:new', 'my wild.py:wild'), baselines='my old.py:old', task='m:easy',
                                trials=4, seeds=5, lengths=said)


def test_a_race_of_objects_is_repeated_from_python():
    def call(**changes):
        given = record(**changes)
        given['rules']['old']['given'] = 'old'
        return repeat(Answer(given)).blocks[0].content['items']['The same race again, in Python']
    assert call(lengths=(80, 160)) == ("miniai.race(new, wild, tasks=[easy], baselines=['old'], trials=4, seeds=5, "
                                       "lengths=[0.5, 1.0], seed=0)")
