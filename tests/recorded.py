"The record of a run, made without training, and an HTML page as tables and texts: shared by the tests of reports."
import json
from html.parser import HTMLParser

from miniai.report.batches import thinned

VOID = {'meta', 'link', 'img', 'br', 'hr', 'input'}
HISTORY = [dict(epoch=e, phase=p, loss=2/(e + k), accuracy=.5 + .1*e + .01*k, seconds=1.5*k)
           for e in range(3) for k, p in ((1, 'train'), (2, 'eval'))]
CLASSES = dict(kind='classes', epoch=2, samples=10, classes=['cat', 'dog'], confusion=[[4, 1], [2, 3]], confused=[],
               per_class=[dict(zip(('class', 'samples', 'precision', 'recall', 'f1'), row, strict=True))
                          for row in (('cat', 5, 4/6, .8, 8/11), ('dog', 5, .75, .6, 2/3))],
               mistakes=[dict(index=7, true='dog', predicted='cat', probability=.9375, png='aGk=')],
               examples=[dict(index=0, true='cat', predicted='cat', probability=.8125, png='aGk=')])
MODULE = dict(name='0', type='Linear', shape=[8, 4], parameters=40)
HEALTH = dict(verdicts=[dict(name='dead layer', where='1', value=.9, threshold=.5, since=12, says='Most of 1 is zero.',
                             do='Lower the rate.', certain='likely', source='a paper')], checked=['labels'],
              records=dict(every=2, batches=[2, 4, 6], run={},
                           layers={'1': dict(kind='ReLU', mean=[.5, .25, .125], std=[1., 2., 3.],
                                             near_zero=[.1, .2, .9], saturated=[0., 0., 0.],
                                             gradient=[1e-3, 1e-4, 0.])},
                           parameters={'0.weight': dict(norm=[1., 2., 4.], gradient=[.1, None, .2],
                                                        update=[1e-3, 1e-3, 2e-3])}))


def record(**changes):
    "The files of a finished run, by name; `changes` replace some, or leave them out if None."
    files = dict(
        status=dict(state='finished', error=None, epochs=3, pid=1, host='other', started='a', ended='b', seconds=20.),
        batches=thinned([2 - i/10 for i in range(12)], [.1*i for i in range(12)], [4, 8, 12]), results=CLASSES,
        data=dict(source='my pictures', kind='pictures', train=40, valid=10, batch_size=10, shape=[1, 8, 8],
                  classes=['cat', 'dog'], counts=dict(train=[25, 15], valid=[5, 5])),
        model=dict(name='simple', parameters=67, trained=67, optimizer='AdamW', loss='cross_entropy',
                   modules=[MODULE]),
        environment=dict(python='3.13', device='cpu', threads=2, command=['miniai', 'train'],
                         versions=dict(torch='2.10')),
        health=HEALTH, profile=[dict(phase='train', part='forward', seconds=3., ms_per_batch=250., share=.75)])
    return files | changes


def write_run(folder, history=HISTORY, config='optimizer = "adamw"\nlr = 0.01\nschedule = "onecycle"\n', **changes):
    "Write the record of a run to a new folder."
    folder.mkdir(parents=True)
    for name, found in record(**changes).items():
        if found is not None: (folder/f'{name}.json').write_text(json.dumps(found), 'utf-8')
    if config is not None: (folder/'config.toml').write_text(config, 'utf-8')
    if history is not None: (folder/'metrics.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in history), 'utf-8')
    return folder


class Page(HTMLParser):
    """A page: `tables` by caption, each a list of rows of cells, a number where a cell has an exact one; `facts` by
    name, and of each section in `sections`; `texts`; and all `tags` with their attributes.
    A tag that is closed wrongly is an AssertionError."""
    def __init__(self, html):
        super().__init__()
        self.html, self.tags, self.texts, self.tables, self.facts, self.open = html, [], [], {}, {}, []
        self.sections = {}
        self._words, self._value = [], None
        self.feed(html)
        self.close()
        assert not self.open, self.open

    @property
    def text(self): return ' '.join(' '.join(self.texts).split())
    def ids(self): return [a['id'] for _, a in self.tags if 'id' in a]
    def where(self, tag): return [a for t, a in self.tags if t == tag]

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in VOID: return
        self.open.append(tag)
        if tag in ('caption', 'td', 'th', 'dt', 'dd', 'h1', 'title'): self._words, self._value = [], None
        if tag == 'section': self._section = self.sections.setdefault(dict(attrs)['aria-labelledby'].split('-')[-1], {})
        if tag == 'table': self._rows = []
        if tag == 'tr': self._rows.append([])
        if tag == 'data': self._value = dict(attrs)['value']

    def handle_startendtag(self, tag, attrs): self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.open and self.open[-1] in ('style',): return
        self.texts.append(data)
        self._words.append(data)

    def handle_endtag(self, tag):
        assert self.open, tag
        assert self.open.pop() == tag
        words = ' '.join(''.join(self._words).split())
        if tag == 'caption': self._caption = words
        if tag in ('td', 'th'): self._rows[-1].append(words if self._value is None else float(self._value))
        if tag == 'table': self.tables[self._caption] = self._rows
        if tag == 'dt': self._name = words
        if tag == 'dd':
            for facts in (self.facts, self._section):
                facts.setdefault(self._name, words if self._value is None else float(self._value))
