"What the sections say: the best epoch by the direction of a metric, percentages, and commands for what is there."
import json

import pytest

from miniai.report.record import read_run
from miniai.report.story import best, figure, seconds_of, sections, sign
from recorded import HISTORY, write_run


def section(folder, name): return next(s for s in sections(read_run(folder), 'r') if s.name == name)


@pytest.mark.parametrize(('metric', 'expected'), [('accuracy', 1), ('loss', -1), ('rmse', -1), ('valid_f1', 1)])
def test_the_direction_of_a_metric(metric, expected): assert sign(metric) == expected


def test_the_best_epoch_is_one_of_validation_or_of_training_without_it(tmp_path):
    run = read_run(write_run(tmp_path/'a'))
    assert best(run, 'loss') == HISTORY[-1]
    assert best(read_run(write_run(tmp_path/'b', HISTORY[::2])), 'loss') == HISTORY[4]
    assert best(run, 'no such') is None
    assert seconds_of(run) == 13.5


def test_accuracies_are_percentages_and_other_figures_are_not():
    texts = [figure(nm, v).text for nm, v in (('accuracy', .9), ('top5_acc', .5), ('accuracy', 90.), ('loss', .5))]
    assert texts == ['90.00\xa0%', '50.00\xa0%', '90', '0.5']


def test_small_parts_of_the_time_share_a_row(tmp_path):
    parts = [dict(phase='train', part=nm, seconds=s, ms_per_batch=s, share=s) for nm, s in (
        ('forward', .99), ('a', .004), ('b', .003))]
    rows = section(write_run(tmp_path/'run', profile=parts), 'time').blocks[1].content['rows']
    found = [[r[0].text, r[-1].value] for r in rows]
    assert found == [['forward', .99], ['2 others, less than 0.5% each', .007]]


def test_commands_for_the_model_are_there_if_the_model_is(tmp_path):
    folder = write_run(tmp_path/'run')
    def found(): return [*section(folder, 'repeat').blocks[0].content['items']]
    assert found() == ['The same run again']
    (folder/'model.safetensors').touch()
    assert found() == ['The same run again', 'As a Python script', 'Evaluate the model', 'Use the model in Python']


def test_every_process_of_a_resumed_run_is_described(tmp_path):
    folder = write_run(tmp_path/'run')
    (folder/'environment-2.json').write_text('{"cpus": 64, "resumed_at": 5}')
    blocks = section(folder, 'environment').blocks
    assert [b.content.get('words') for b in blocks[::2]] == ['The first process', 'Resumed by process 2']
    assert blocks[1].content['items']['started by'].text == 'miniai train'
    assert (blocks[3].content['items']['processors'].value, blocks[3].content['items']['ended'].text) == (64, 'b')


def test_the_result_says_where_a_run_was_resumed_and_the_profile_that_it_is_of_the_last_process(tmp_path):
    folder = write_run(tmp_path/'run')  # epochs of 4 batches
    def words(name): return [b.content.get('words') for b in section(folder, name).blocks]
    assert not any('Resumed' in (w or '') for w in words('result'))
    assert 'The parts are those of the last process.' not in words('time')
    for i, n in ((2, 5), (3, 8), (4, 0)): (folder/f'environment-{i}.json').write_text(json.dumps(dict(resumed_at=n)))
    assert ('Resumed at batch 5, in epoch 2, at batch 8, after epoch 2, from the start, without a checkpoint.'
            in words('result'))
    assert 'The parts are those of the last process.' in words('time')
