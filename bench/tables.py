"""`miniai train` with no options on tables that ship with scikit-learn, next to scikit-learn's linear models.

    python bench/tables.py [--folds N] [--repeats N]

Each fold of a shuffled N-fold split is held out once, in every repeat of another order. Standard errors are over the
folds of all repeats, as if these were independent. miniai gets the rows as they are; logistic regression and
ridge get standardised numbers, with scikit-learn's defaults.
"""
import argparse
import contextlib
import io
import statistics
from dataclasses import replace

import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from machine import record
from miniai import DataLoaders
from miniai.jobs.build import build_model, build_optimizer, epochs, learning_rate
from miniai.jobs.compute import resolve
from miniai.jobs.config import TrainConfig
from miniai.jobs.train import build_learner

TABLES = {'breast cancer': load_breast_cancer, 'diabetes': load_diabetes, 'wine': load_wine, 'digits': load_digits}


def ours(df, held_out, seed):
    "Accuracy, or R² of numbers, on the rows that are held out."
    config = TrainConfig(seed=seed, device='cpu')
    dls = DataLoaders.from_table(df, 'target', valid=held_out, bs=config.batch_size, seed=seed)
    config = resolve(replace(config, lr=learning_rate(config, dls), epochs=epochs(config, dls)), 'cpu')
    learn = build_learner(config, dls, [], build_model(config, dls), build_optimizer(config))
    with contextlib.redirect_stdout(io.StringIO()): learn.fit(config.epochs)
    found = learn.results().as_dict()
    return found.get('accuracy', found.get('r2'))


def theirs(df, train, held_out, is_classes):
    x, y = df.drop(columns='target').to_numpy(), df.target.to_numpy()
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000) if is_classes else Ridge())
    return model.fit(x[train], y[train]).score(x[held_out], y[held_out])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--folds', type=int, default=5)
    parser.add_argument('--repeats', type=int, default=2)
    args = parser.parse_args()
    lines = ['| | miniai train | scikit-learn | difference |', '|--|--|--|--|']
    for name, load in TABLES.items():
        df, pairs = load(as_frame=True).frame, []
        for seed in range(args.repeats):
            for train, held_out in KFold(args.folds, shuffle=True, random_state=seed).split(df):
                pairs.append((ours(df, held_out, seed), theirs(df, train, held_out, df.target.nunique() < 20)))
        a, b = np.array(pairs).T
        error = statistics.stdev(a - b)/len(pairs)**.5
        lines.append(f'| {name} | {a.mean():.4f} | {b.mean():.4f} | {(a - b).mean():+.4f} ± {error:.4f} |')
        print(lines[-1], flush=True)
    record('tables', '\n'.join(lines), f'{args.folds} folds, {args.repeats} repeats; accuracy, or R² for diabetes',
           ('scikit-learn',))


if __name__ == '__main__': main()
