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


def test_the_table_of_several_races_has_their_summaries_first_and_the_commands_that_repeat_them(tmp_path):
    options = dict(baselines=['adamw'], seeds=2)
    answers = [races.run(races.descent, **options, lengths=[share], seed=seed, out=tmp_path/str(seed))
               for share, seed in ((1., 0), (.5, 3))]
    text = league.table(answers)
    heads = [line for line in text.split('\n') if line.startswith('#')]
    titles = [f'## 2 optimizers, runs of {share} of the steps' for share in ('1', '0.5')]
    assert heads == [*titles, *(f'{nm}: the answer of the race' for nm in titles)]
    repeat = 'python bench/league.py --rules adamw descent --tasks tiny --trials'
    assert [line for line in text.split('\n') if line.startswith('`')] == [
        f'`{repeat} 2 --seeds 2 --lengths 1.0`', f'`{repeat} 2 --seeds 2 --lengths 0.5 --seed 3`']
    for answer in answers: assert league.summary(answer) in text
