"The summary that bench/league.py makes of a race: verdicts, figures and failures are those of the answer."
import sys
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'bench'))

import league
import races


def test_a_row_has_the_verdicts_figures_and_failures_of_its_rule_and_the_best_rank_is_first(tmp_path):
    answer = races.run(races.descent, races.nan, baselines=['adamw'], compare='baselines', seeds=8, lengths=[1.],
                       out=tmp_path)
    lines = [line for line in league.summary(answer).split('\n') if line.startswith('| ')]
    rows = {row[0]: row[1:] for row in ([c.strip() for c in line.split('|')[1:-1]] for line in lines)}
    assert [*rows][2:] == sorted(answer.rules, key=lambda nm: answer.ranks[nm][0])
    assert rows['rule'][5:] == ['tiny, 16', 'failed: tuning, comparison']
    verdicts = {c['a']: c['verdict'] for c in answer.comparisons}
    assert verdicts == dict(descent='better', nan='worse')
    for nm, mark in (('descent', '**{}**'), ('nan', '{} ✗'), ('adamw', '{}')):
        assert rows[nm][5] == mark.format(f"{mean(answer.figures['tiny', 16][nm]):.4g}")
    assert (rows['descent'][2:5], rows['nan'][2:5], rows['adamw'][2:5]) == (['1', '0', '0'], ['0', '1', '0'], ['']*3)
    assert rows['nan'][6] == '2 of 2, 8 of 8'
