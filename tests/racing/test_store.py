"The folder of a race: results are complete or not there, and two processes never do the same trial."
import os
import threading

import pytest

from miniai.racing.store import Store, digest_of

TRIALS = [dict(n=i) for i in range(6)]


def test_a_name_depends_on_what_a_trial_is_and_not_on_the_order_of_its_facts():
    assert digest_of(dict(a=1, b=[2., 'x'])) == digest_of(dict(b=[2., 'x'], a=1))
    assert digest_of(dict(a=1)) != digest_of(dict(a=2))


def test_what_is_finished_is_read_and_only_the_rest_runs(tmp_path):
    done = []
    def run(trial):
        done.append(trial)
        return dict(x=trial['n']/3)
    store = Store(tmp_path)
    assert store.results(TRIALS[:2], run) == [dict(x=0.), dict(x=1/3)]
    assert store.results([*TRIALS, TRIALS[0]], run)[-2:] == [dict(x=5/3), dict(x=0.)]
    assert done == TRIALS


def test_two_stores_on_one_folder_share_the_trials(tmp_path):
    done, together, results = [], threading.Barrier(2), {}
    def run(trial):
        done.append(trial['n'])
        if len(done) < 3: together.wait(30)  # both are inside a trial at the same time
        return dict(x=trial['n'])
    def work(name): results[name] = Store(tmp_path).results(TRIALS, run)
    threads = [threading.Thread(target=work, args=(nm,)) for nm in 'ab']
    for t in threads: t.start()
    for t in threads: t.join(60)
    assert sorted(done) == [0, 1, 2, 3, 4, 5]
    assert results['a'] == results['b'] == [dict(x=i) for i in range(6)]


def test_a_trial_that_is_interrupted_leaves_no_result_and_no_lock(tmp_path):
    def stopped(trial): raise KeyboardInterrupt
    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt): store.results(TRIALS, stopped)
    assert not [*(tmp_path/'trials').iterdir()]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    store = Store(tmp_path)
    store.write('a.json', dict(x=1))
    with pytest.raises(ValueError, match='not JSON compliant'): store.write('a.json', dict(x=float('nan')))
    assert store.read('a.json') == dict(x=1)
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ['a.json']
    assert store.read('b.json') is None


@pytest.mark.parametrize('text', ['', '[1]', 'null', '{"trial": 1}', '{"trial": {"n": 0}', '{"trial": {"n": 0}}',
                                  '{"trial": {"n": 5}, "result": {"x": 7}}', b'\xff\xfe'])
def test_a_trial_whose_file_is_damaged_runs_again(tmp_path, text):
    done, told = [], []
    store = Store(tmp_path, told.append)
    def run(trial):
        done.append(trial)
        return dict(x=trial['n'])
    store.results(TRIALS, run)
    assert not told
    file = tmp_path/'trials'/f'{digest_of(TRIALS[0])}.json'
    good = file.read_bytes()
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert store.results(TRIALS, run) == [dict(x=i) for i in range(6)]
    assert done == [*TRIALS, TRIALS[0]]
    assert file.read_bytes() == good
    assert told == [f'{file} is damaged: this run is done again']


def test_another_damaged_file_is_an_error_that_names_it(tmp_path):
    store = Store(tmp_path)
    (tmp_path/'plan.json').write_text('{"a')
    with pytest.raises(ValueError, match=r'plan\.json is damaged: '): store.read('plan.json')


def test_a_text_that_is_no_unicode_is_written_with_backslashes(tmp_path):
    store = Store(tmp_path)
    store.write('a.md', 'odd \udcff')
    assert (tmp_path/'a.md').read_text('utf-8') == 'odd \\udcff'


def test_a_new_folder_is_removed_only_while_it_is_empty(tmp_path):
    (tmp_path/'old').mkdir()
    stores = {nm: Store(tmp_path/nm) for nm in ('old', 'new', 'used')}
    stores['used'].write('a.json', {})
    for store in stores.values(): store.leave()
    assert sorted(p.name for p in tmp_path.iterdir()) == ['old', 'used']


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    there, file = [], tmp_path/'a.md'
    monkeypatch.setattr('miniai.atomic.sync', lambda fd: there.append((os.fstat(fd).st_size, file.exists())))
    Store(tmp_path).write('a.md', 'whole')
    assert there == [(5, False)]
    assert file.read_text() == 'whole'
