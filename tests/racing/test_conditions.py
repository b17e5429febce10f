"What a race was, for who checks or repeats it: code, spaces and commands."
from miniai.racing.answer import Answer
from miniai.racing.conditions import MOST_CODE, configurations, repeat, sources
from raced import record


def test_rules_of_one_file_share_its_code_and_those_of_the_library_have_a_name():
    blocks = sources(Answer(record(codes=dict(new='f\ncode', wild='wild\ncode')))).blocks
    assert blocks[0].content['line'] == 'new (f), wild'
    assert list(blocks[0].content['blocks'][0].content['items'].values()) == ['code']
    assert blocks[1].content['words'] == 'Rules of miniai 0.3.0, by name: old.'


def test_a_very_long_file_is_cut():
    block, _ = sources(Answer(record(codes=dict(new='new\n' + 'x'*(MOST_CODE + 1))))).blocks
    code, = block.content['blocks'][0].content['items'].values()
    assert code == 'x'*MOST_CODE + '\n… race.json has the rest'


def test_configurations_that_differ_between_tasks_have_rows_of_their_own():
    given = record(trials=1)
    for r in given['runs']:
        if r['steps'] == 160: r['config']['lr'] = .5
    table = configurations(Answer(given)).blocks[1].content['blocks'][0].content
    assert [[c.text for c in row][1:] for row in table['rows']] == [
        ['0.01', '0.125', '0.375', '—'], ['0.5', '0.125', '—', '0.3563\u00a0★']]


def test_the_command_repeats_the_protocol():
    commands = repeat(Answer(record())).blocks[0].content['items']
    assert commands['The same race again'] == ('miniai race new wild --baselines old --task easy --trials 4 --seeds 5 '
                                               '--seed 0')
