"Law about words: no phrases that read like a translation."
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [*sorted((ROOT/'src').rglob('*.py')), *sorted((ROOT/'docs').glob('*.md')), ROOT/'README.md',
         ROOT/'CHANGELOG.md']
PHRASES = {  # phrase: what to write
    'gone on with':      'resumed, continued',
    'goes on with':      'resumes, continues',
    'cannot be meant':   'is invalid',
    'done without':      'skipped, not used',
    'amid':              'during, in the middle of',
    'be it that':        'if',
    'see to that':       'say what to do',
    'taken up':          'resumed',
    'nobody knows':      'is unknown',
    "of one's own":      'your own',
    'is none such':      'does not exist, is not one',
    'settled':           'decided, fixed',
    'looked at anew':    'checked again',
    'anew':              'again',
    'in the place of':   'instead of',
}


def uses(phrase, text):
    "Line numbers at which a phrase begins, even if it is wrapped over lines of prose, comments or strings."
    pattern = r'\b' + r'(?:\s|#|f?["\'])+'.join(map(re.escape, phrase.split())) + r'\b'
    return [text.count('\n', 0, m.start()) + 1 for m in re.finditer(pattern, text, re.IGNORECASE)]


def test_there_are_no_phrases_that_read_like_a_translation():
    found = [f"{path.relative_to(ROOT)}:{line}: {phrase!r}; write: {better}"
             for path in TEXTS for phrase, better in PHRASES.items() for line in uses(phrase, path.read_text())]
    assert not found, '\n'.join(['', *found])


def test_a_phrase_is_found_in_any_case_and_across_lines_but_not_inside_a_word():
    assert uses('gone on with', 'It is Gone\n    # on with.\nbegone on with') == [1]
    assert uses('cannot be meant', "f'{x} cannot '\n    f'be meant'") == [1]
