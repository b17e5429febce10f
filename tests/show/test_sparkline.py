"Curves as a line of blocks."
import math

import pytest

from miniai.show.sparkline import sparkline


@pytest.mark.parametrize(('values', 'width', 'line'), [
    ([0, 1, 2, 3, 4, 5, 6, 7], 8, '▁▂▃▄▅▆▇█'), ([7, 0], 8, '█▁'), ([1, 1, 5, 5, 9, 9], 3, '▁▅█'),
    ([4., 4., 4.], 9, '▁▁▁'),
    ([], 5, ''), ([3.], 5, '▁'), ([1, math.nan, 2, math.inf], 4, '▁ █ '), ([math.nan], 4, ' '),
    ([math.nan, 1, 3, math.inf], 2, '▁█')])
def test_a_block_is_as_high_as_the_mean_of_its_part(values, width, line): assert sparkline(values, width) == line


def test_a_long_curve_is_as_wide_as_asked_and_reads_only_some_values():
    read = []
    class Counted(list):
        def __getitem__(self, i):
            found = super().__getitem__(i)
            read.append(len(found))
            return found
    assert sparkline(Counted(range(1_000_000)), 8) == '▁▂▃▄▅▆▇█'
    assert read[0] <= 4000
