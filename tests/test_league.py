"The summary that bench/league.py makes of a race: verdicts and figures are those of the answer."
import sys
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'bench'))

import league
import races


def test_a_row_has_the_verdicts_and_figures_of_its_rule_and_the_best_rank_is_first(tmp_path):
    answer = races.run(races.descent, races.nan, baselines=['adamw'], compare='baselines', seeds=8, lengths=[1.],
                       out=tmp_path)
    lines = [line for line in league.summary(answer).split('\n') if line.startswith('| ')]
    rows = {row[0]: row[1:] for row in ([c.strip() for c in line.split('|')[1:-1]] for line in lines)}
    assert [*rows][2:] == sorted(answer.rules, key=lambda nm: answer.ranks[nm][0])
    assert rows['rule'] == ['mean rank', 'better', 'worse', 'tiny, 16']
    verdicts = {c['a']: c['verdict'] for c in answer.comparisons}
    assert verdicts == dict(descent='better', nan='worse')
    for nm, mark in (('descent', '**{}**'), ('nan', '{}✗'), ('adamw', '{}')):
        assert rows[nm][3] == mark.format(f"{mean(answer.figures['tiny', 16][nm]):.4g}")
    assert (rows['descent'][1:3], rows['nan'][1:3], rows['adamw'][1:3]) == (['1', '0'], ['0', '1'], ['']*2)
