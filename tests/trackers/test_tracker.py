"What all trackers share."
import pytest

from miniai.trackers import TRACKERS
from miniai.trackers.tracker import Tracker, free_name, key_of, unseen


def test_every_tracker_can_do_what_trackers_do_and_says_what_to_install():
    for name, kind in TRACKERS.items():
        assert issubclass(kind, Tracker)
        for method in ('config', 'figures', 'picture', 'alert'):
            assert getattr(kind, method) is not getattr(Tracker, method), f'{name} {method}'
        assert kind.package == ('' if name == 'csv' else name)


def test_a_name_is_free_if_nothing_has_it(tmp_path):
    assert free_name(tmp_path, 'a') == 'a'
    (tmp_path/'a').mkdir()
    (tmp_path/'a-2').touch()
    assert free_name(tmp_path, 'a') == 'a-3'


def test_a_key_has_only_letters_digits_and_what_all_trackers_accept():
    assert key_of('loss [%]: 0.1.Conv2d/a-b_c') == 'loss ____ 0.1.Conv2d/a-b_c'


def test_unseen_figures_are_those_after_the_last_step_of_their_name():
    rows = [(1, dict(a=1., b=2.)), (2, dict(a=3.)), (3, dict(a=4., b=5.))]
    assert unseen(rows, dict(a=2)) == [(1, dict(b=2.)), (3, dict(a=4., b=5.))]
    assert unseen(rows, {}) == rows


def test_the_base_class_is_no_tracker(tmp_path):
    with pytest.raises(NotImplementedError): Tracker(tmp_path, 'a', None, 0)
