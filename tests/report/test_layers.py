"Layers over time: a row for each, with its last value."
from miniai.report.layers import MOST_ROWS, layers
from miniai.report.record import read_run
from recorded import HEALTH, write_run


def tables(folder):
    blocks = layers(read_run(folder), 'r').blocks
    return {b.content['caption']: [b.content['head'], *([c.text if c.value is None else c.value for c in row]
                                                       for row in b.content['rows'])]
            for b in blocks if b.kind == 'table'}, [b.content['words'] for b in blocks if b.kind == 'text']


def test_every_layer_and_parameter_has_a_row_with_its_last_values(tmp_path):
    found, words = tables(write_run(tmp_path/'run'))
    head = ['layer', 'mean', 'spread', 'near zero', 'saturated', 'gradient']
    assert found == {'Activations and their gradients': [head, ['1 (ReLU)', .125, 3., .9, 0., 0.]],
                     'Parameters': [['parameter', 'norm', 'gradient', 'update / weight'], ['0.weight', 4., .2, 2e-3]]}
    assert words[0].startswith('3 sampled batches, from 2 to 6.')


def test_what_was_not_recorded_has_no_column_and_many_layers_are_cut_with_a_note(tmp_path):
    one = dict(kind='ReLU', mean=[1.], std=[2.], near_zero=[], saturated=[None], gradient=[])
    many = {'nothing': dict(kind='BatchNorm2d', mean=[None])} | {str(i): one for i in range(MOST_ROWS + 5)}
    found, words = tables(write_run(tmp_path/'run', health=dict(records=dict(batches=[1], layers=many))))
    assert found['Activations and their gradients'][0] == ['layer', 'mean', 'spread']
    assert len(found['Activations and their gradients']) == MOST_ROWS + 1
    assert words[-1] == '5 more are in health.json.'


def test_without_records_the_section_says_so(tmp_path):
    for i, health in enumerate((None, dict(HEALTH, records={}))):
        assert tables(write_run(tmp_path/str(i), health=health)) == ({}, [
            'Nothing was recorded about the layers: HealthCB does it.'])
