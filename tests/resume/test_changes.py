"A change of a script between stopping and resuming it is refused or warned of by name, unless it changes nothing."
import pytest

import outcomes
from changes import CHANGES


@pytest.mark.parametrize('name', CHANGES)
def test_a_change_is_named_before_it_can_change_the_result(name, server, tmp_path):
    change = CHANGES[name]
    outcome = outcomes.of_change(server, tmp_path, change)
    assert outcome.word in change.expect.split('|'), f'{outcome}; expected {change.expect}'


def test_no_change_is_expected_to_be_silent_and_those_to_be_named_have_a_name():
    words = {w for c in CHANGES.values() for w in c.expect.split('|')}
    assert words <= {'harmless', 'warned', 'refused'}
    assert not [c.name for c in CHANGES.values() if 'refused' in c.expect and not c.names]
