"Each program that a user might write resumes exactly, or the state that it would lose is named."
import pytest

import outcomes
from programs import table

PROGRAMS = table()


@pytest.mark.parametrize('name', PROGRAMS)
def test_a_program_that_was_stopped_ends_like_one_that_was_not_or_what_it_lost_is_named(name, server, tmp_path):
    p = PROGRAMS[name]
    outcome = outcomes.of_program(server, tmp_path, p)
    assert outcome.word in p.expect.split('|'), f'{outcome}; expected {p.expect}'


@pytest.mark.parametrize(('name', 'found'), [('counter', 'yes'), ('replay_buffer', 'yes'), ('curriculum', 'yes'),
                                             ('one_cycle', 'yes'), ('clock', 'no'), ('lists_of_batches', 'no')])
def test_a_resume_that_forgets_a_programs_own_state_is_noticed(name, found, server, tmp_path):
    p, job = PROGRAMS[name], dict(module=PROGRAMS[name].module, name=name, epochs=2, stop=('train', 1, 2))
    whole = server.run(tmp_path, 'whole', **job)
    assert outcomes.forgetting(server, tmp_path, job, whole) == found, p.kind


def test_no_program_is_expected_to_lose_state_silently_or_to_crash():
    words = {w for p in PROGRAMS.values() for w in p.expect.split('|')}
    assert words <= {'identical', 'warned', 'reported'}
    assert not [p.name for p in PROGRAMS.values() if 'reported' in p.expect and not p.names]
