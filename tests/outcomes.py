"""What happens when a program is stopped and resumed, or changed before it is resumed, as one word.

Programs: 'identical': it ends like an uninterrupted run. 'warned': so too, but with a warning. 'reported': it ends
differently or not at all, and a warning or ResumeError names the state. 'SILENT': it ends differently and nothing says
so. 'CRASH': any other error.

Changes: 'harmless': ends like the original. 'warned': a warning names the change. 'refused': a ResumeError names it.
'unnamed': an error or warning that does not name it. 'SILENT' and 'CRASH' as above.
"""
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent


@dataclass
class Outcome:
    word: str
    differs: list  # what ended differently
    said: list  # warnings and errors
    control: str = ''  # 'yes' if the row has a reason to be there

    def __str__(self): return f'{self.word}; different: {self.differs}; said: {self.said}'


class Server:
    "Runs jobs, each in a process of its own that has imported torch and miniai."
    def __init__(self):
        self.originals = {}  # of scripts to change
        env = os.environ | dict(OMP_NUM_THREADS='1', MPLBACKEND='agg')
        self.process = subprocess.Popen([sys.executable, HERE/'half_runs.py'], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, env=env)

    def run(self, folder, part, **job):
        "The report of one job: `end`, `warnings`, `error`."
        out = Path(folder)/f'{part}.json'
        job |= dict(folder=str(Path(folder)/('saved' if part == 'save' else 'run')), out=str(out), part=part)
        self.process.stdin.write(json.dumps(job) + '\n')
        self.process.stdin.flush()
        self.process.stdout.readline()
        if out.exists(): return json.loads(out.read_text())
        log = Path(f'{out}.log')
        text = log.read_text()[-2000:] if log.exists() else ''
        return dict(end=None, warnings=[], error=dict(type='the process died', text=text, deliberate=False))

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        for o in self.originals.values(): o.folder.cleanup()


def differences(a, b): return sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))
def names_it(names, said): return bool(names) and any(re.search(rf'(?<!\w)({names})(?!\w)', t) for t in said)


def news(parts, usual):
    "The warnings of some parts that an uninterrupted run does not give."
    return list(dict.fromkeys(w for p in parts for w in p['warnings'] if w not in usual['warnings']))


def of_program(server, folder, p, stop=None, control=False):
    "Stop and resume a program; with `control` also see whether forgetting its state makes a difference."
    job = dict(module=p.module, name=p.name, epochs=p.epochs, stop=stop or p.stop)
    whole = server.run(folder, 'whole', **job)
    if whole['error']: return Outcome('CRASH', [], ['uninterrupted', *texts([whole['error']])])
    first = server.run(folder, 'stop', **job)
    if first['end']: return Outcome('CRASH', [], ['the run was not stopped'])
    second = first if first['error'] else server.run(folder, 'resume', **job)
    said, error = news([first, second], whole), second['error']
    differs = differences(whole['end'], second['end']) if second['end'] else []
    if differs and differences(whole['end'], server.run(folder, 'save', **job)['end']):
        differs.insert(0, 'the same run without a stop')
    if error: word = word_for_error(error, p.names, 'reported', said)
    elif differs: word = 'reported' if names_it(p.names, said) else 'SILENT'
    else: word = 'warned' if said else 'identical'
    return Outcome(word, differs, said + texts([error]), forgetting(server, folder, job, whole) if control else '')


def word_for_error(error, names, word, said=()):
    "`word` if miniai raised the error to say that it cannot save or resume this, and it or a warning names what it is."
    if not error['deliberate']: return 'CRASH'
    return word if names_it(names, [error['text'], *said]) else 'unnamed'


def texts(errors): return [f"{e['type']}: {e['text']}" for e in errors if e]


def forgetting(server, folder, job, whole):
    "'yes' if a resume that restores only model, optimizer, random states and position ends differently."
    out = server.run(folder, 'forget', **job)
    if out['error']: return 'yes'  # it cannot even run
    return 'yes' if set(differences(whole['end'], out['end'])) - {'history', 'random states', 'optimizer'} else 'no'


class Original:
    "A script before it is changed: run to its end, and stopped."
    def __init__(self, server, change):
        self.folder, self.script = TemporaryDirectory(), change.script
        self.path = Path(self.folder.name)/'script.py'
        self.text = (HERE/'scripts_to_change'/f'{self.script}.py').read_text()
        self.path.write_text(self.text)
        job = dict(script=str(self.path), stop=change.stop)
        self.whole = server.run(self.folder.name, 'whole', epochs=change.epochs, **job)
        self.first = server.run(self.folder.name, 'stop', epochs=2, **job)
        for part in (self.whole, self.first): assert not part['error'], f"{self.script}: {part['error']}"


def of_change(server, folder, change, control=False):
    "Change a script after it was stopped, and resume it; with `control` also see whether the change matters."
    original = server.originals.get((change.script, change.epochs, change.stop))
    if not original: original = server.originals[change.script, change.epochs, change.stop] = Original(server, change)
    original.path.write_text(change.applied(original.text))
    shutil.copytree(Path(original.folder.name)/'run', Path(folder)/'run')
    job = dict(script=str(original.path), epochs=change.epochs, stop=change.stop)
    second = server.run(folder, 'resume', saving=change.saving, **job)
    said, error = news([second], original.first), second['error']
    differs = differences(original.whole['end'], second['end']) if second['end'] else []
    if error: word = word_for_error(error, change.names, 'refused')
    elif said: word = 'warned' if names_it(change.names, said) else 'SILENT' if differs else 'unnamed'
    else: word = 'SILENT' if differs else 'harmless'
    return Outcome(word, differs, said + texts([error]), mattering(server, folder, job, original) if control else '')


def mattering(server, folder, job, original):
    "'yes' if an uninterrupted run of the changed script ends differently from the original."
    out = server.run(folder, 'whole', **job)
    return 'yes' if out['error'] or differences(original.whole['end'], out['end']) else 'no'
