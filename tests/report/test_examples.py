"Predictions on the page: mistakes with pictures or as a table, many classes by their weakest, numbers by their errors."
from miniai.report.examples import MOST_CLASSES, examples
from miniai.report.record import read_run
from recorded import CLASSES, write_run


def blocks(folder): return examples(read_run(folder), 'r').blocks
def captions(found): return [b.content.get('caption') for b in found if b.kind in ('table', 'pictures')]


def test_pictures_say_what_was_predicted_and_what_it_is(tmp_path):
    found = blocks(write_run(tmp_path/'run'))
    mistake, = found[1].content['items']
    assert (mistake['png'], mistake['wrong'], mistake['true']) == ('aGk=', True, 'dog')
    assert mistake['alt'] == 'validation sample 7: dog, predicted as cat'
    assert [(label, share.value) for label, share in mistake['said']] == [('cat', .9375)]
    assert found[2].content['items'][0]['wrong'] is False


def test_without_pictures_mistakes_are_a_table(tmp_path):
    bare = dict(CLASSES, mistakes=[dict(CLASSES['mistakes'][0], png=None)], examples=[])
    found = blocks(write_run(tmp_path/'run', results=bare))
    assert [c.text for c in found[1].content['rows'][0]] == ['7', 'cat', '93.8\xa0%', 'dog']


def test_of_many_classes_the_weakest_and_the_most_confused_are_shown(tmp_path):
    rows = [dict(zip(('class', 'samples', 'precision', 'recall', 'f1'), (f'c{i}', 1, .5, .5, i/100), strict=True))
            for i in range(100)][::-1]
    found = blocks(write_run(tmp_path/'run', results=dict(
        CLASSES, confusion=None, per_class=rows, confused=[dict(true='c1', predicted='c2', count=9)])))
    table = found[-1].content
    assert table['caption'] == f'The {MOST_CLASSES} weakest of 100 classes'
    assert [r[0].text for r in table['rows']] == [f'c{i}' for i in range(MOST_CLASSES)]
    assert 'Most often confused' in captions(found)


def test_numbers_have_errors_a_picture_and_the_largest_differences(tmp_path):
    results = dict(kind='numbers', epoch=0, samples=2, rmse=1.5, mae=1., r2=.75, points=[[1., 2.], [3., 3.]],
                   mistakes=[dict(index=4, true=1., predicted=2.)])
    found = blocks(write_run(tmp_path/'run', results=results))
    assert captions(found) == ['Errors', 'The largest errors']
    assert [row[1].value for row in found[2].content['rows']] == [1.5, 1., .75]
    assert [c.text for c in found[3].content['rows'][0]] == ['4', '1', '2', '1']
    assert found[1].content['figures'][0]['svg'].count('<circle') == 2


def test_without_results_the_reason_is_given(tmp_path):
    assert blocks(write_run(tmp_path/'a', results=dict(kind=None, why='Too many.')))[0].content['words'] == 'Too many.'
    assert 'ended before its first validation' in blocks(write_run(tmp_path/'b', results=None))[0].content['words']
