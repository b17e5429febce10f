"The record of a race, made without training, shared by the tests of its page."
MACHINE = dict(python='3.13', platform='Linux', machine='x86_64', cpus=2, threads=2, device='cpu', gpu=None,
               versions={'miniai-torch': '0.3.0', 'torch': '2.10'})
RULES = 'new', 'wild', 'old'


def result(final, steps, start=2., failed=None):
    "A run whose curve falls to `final` in four equal parts; none without it."
    curve = [] if final is None else [[steps*i//4, steps*i/1000, final + (4 - i)/8] for i in range(1, 5)]
    return dict(final=final, start=start, failed=failed or (final is None and 'diverged: NaN') or None, curve=curve,
                seconds=steps/250, state_bytes=4096, peak_bytes=None)


def record(rules=RULES, entrants=2, tasks=('easy',), lengths=(40, 160), trials=4, seeds=5, codes=None, figure=None):
    """A race of rules of which the first `entrants` are no baselines. `figure(i, seed, steps)` is what the rule with
    number i comes to; by default 'wild', if there, diverges in tuning and at every second seed."""
    def default(i, seed, steps):
        return None if rules[i] == 'wild' and seed % 2 else .1*(i + 1) + .01*(seed % 3) + 1/steps
    figure, runs = figure or default, []
    for task in tasks:
        for steps in lengths:
            for i, rule in enumerate(rules):
                for tunes, n in ((True, trials), (False, seeds)):
                    for k in range(n):
                        config = dict(lr=.01*2**(k if tunes else 1), wd=.125)
                        final = figure(i, 999 if tunes else k, steps)
                        final = final if final is None or not tunes else final + abs(k - 1)/4
                        runs.append(dict(task=task, steps=steps, rule=rule, tunes=tunes, seed=999 if tunes else k,
                                         config=config, result=result(final, steps)))
    protocol = dict(entrants=list(rules[:entrants]), baselines=list(rules[entrants:]), tasks=list(tasks), trials=trials,
                    seeds=seeds, lengths=[n/lengths[-1] for n in lengths], seed=0, alpha=.05, power=.8)
    spaces = {nm: dict(space=dict(lr=dict(low=.01, high=.08), wd=[.125, .25]), code=nm) for nm in rules}
    for nm, code in (codes or {}).items(): spaces[nm]['code'] = code
    return dict(protocol=protocol, runs=runs, machine=MACHINE, rules=spaces, left_out=['resnet'],
                tasks={nm: dict(steps=lengths[-1], figure='loss', about=f'the task {nm}') for nm in tasks})
