"""Every optimizer in loops that are not ours: plain PyTorch, Lightning, Hugging Face's Trainer, and Accelerate.

    python bench/loops.py [--only NAME …] [--epochs N]

The net has a matrix, a convolution, a norm, biases and a tied weight; the same batches in the same order, gradients
clipped to norm 1, one epoch per checkpoint. Each loop trains without a pause, and again from its own checkpoint of
the first epoch, with new objects. Needs lightning, transformers and accelerate."""
import argparse
import logging
import tempfile
import warnings
from functools import partial
from pathlib import Path

import accelerate
import lightning
import torch
import torch.nn.functional as F
import transformers
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from machine import record
from miniai import optim
from miniai.jobs.registry import OPTIMIZERS
from miniai.optim.schedules import has_momentum

WORDS, LENGTH, BATCH, STEPS = 16, 8, 16, 25  # STEPS is the number of batches in an epoch
RATES = dict(lamb=.1)  # where that of the registry, for other nets, is too slow for so few steps
OPTIONS = {
    'prodigy, d=1e-3': (optim.Prodigy, dict(lr=1., d=1e-3)),  # from 1e-6 it needs more steps
    'adamw, state=bf16': (optim.AdamW, dict(state='bf16')),
    'adamw, state=int8': (optim.AdamW, dict(state='int8')),
    'adamw, clip_norm, skip_nonfinite': (optim.AdamW, dict(clip_norm=.5, skip_nonfinite=True)),
    'adamw, ema': (optim.AdamW, dict(ema=.9)),
    'muon, cautious, tail': (optim.Muon, dict(cautious=True, tail=10)),
}


class Net(transformers.PreTrainedModel):
    """Guesses the next word: an embedding, which is also the head, a convolution, a norm, and a matrix. A model of
    transformers, because its Trainer saves tied weights of no other."""
    _tied_weights_keys = {'head.weight': 'words.weight'}
    config_class = transformers.PretrainedConfig

    def __init__(self):
        super().__init__(self.config_class())
        self.words, self.conv = nn.Embedding(WORDS, 16), nn.Conv1d(16, 16, 3, padding=2)
        self.norm, self.hidden, self.head = nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, WORDS)
        self.head.weight = self.words.weight
        self.post_init()

    def forward(self, x, labels=None):
        h = self.words(x)
        h = self.norm(h + self.conv(h.mT)[..., :LENGTH].mT)
        logits = self.head(F.gelu(self.hidden(h)))
        return dict(loss=F.cross_entropy(logits.flatten(0, 1), labels.flatten()), logits=logits)


class Words(Dataset):
    "Rows in which each word follows from the word before it, by a rule of its own."
    def __init__(self):
        g = torch.Generator().manual_seed(0)
        follower = torch.randperm(WORDS, generator=g)
        rows = [torch.randint(WORDS, (STEPS * BATCH,), generator=g)]
        for _ in range(LENGTH): rows.append(follower[rows[-1]])
        self.rows = torch.stack(rows, 1)

    def __len__(self): return len(self.rows)
    def __getitem__(self, i): return dict(x=self.rows[i, :-1], labels=self.rows[i, 1:])


def parts(build, epochs, schedule='onecycle'):
    "A new model with its optimizer and scheduler."
    torch.manual_seed(0)
    model = Net()
    opt = build(model)
    n, lrs = epochs * STEPS, [g['lr'] for g in opt.param_groups]
    if schedule == 'lambda': return model, opt, LambdaLR(opt, lambda i: min(1, (i + 1)/5) * (1 - i/n))
    return model, opt, OneCycleLR(opt, lrs, total_steps=n, cycle_momentum=has_momentum(opt))


def batches(): return DataLoader(Words(), BATCH)


def plain(build, epochs, folder, resume=False, schedule='onecycle', by_group=False):
    "The weights and losses of a loop in plain PyTorch. `by_group` is the order in which the norm is summed."
    model, opt, sched = parts(build, epochs, schedule)
    losses, file = [], folder/'plain.pt'
    if resume:
        for x, saved in zip((model, opt, sched), torch.load(file, weights_only=True), strict=True):
            x.load_state_dict(saved)
    for epoch in range(1 if resume else 0, epochs):
        opt.train()
        for batch in batches():
            loss = model(**batch)['loss']
            loss.backward()
            grouped = [p for g in opt.param_groups for p in g['params']]
            nn.utils.clip_grad_norm_(grouped if by_group else model.parameters(), 1.)
            opt.step()
            sched.step()
            opt.zero_grad()
            losses.append(loss.item())
        opt.eval()  # for rules and options with an evaluation point; the others do nothing
        if epoch == 0 and not resume: torch.save([x.state_dict() for x in (model, opt, sched)], file)
    return model, losses


class Module(lightning.LightningModule):
    "Net in Lightning."
    def __init__(self, build, epochs):
        super().__init__()
        self.model, self.opt, self.sched = parts(build, epochs)
        self.losses = []

    def configure_optimizers(self):
        return [self.opt], [dict(scheduler=self.sched, interval='step')]

    def training_step(self, batch, i):
        loss = self.model(**batch)['loss']
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, i): self.log('valid_loss', self.model(**batch)['loss'])

class EvaluationPoint(lightning.Callback):
    "Switches optimizers between the point that trains and the one to evaluate and save."
    def on_train_batch_start(self, trainer, *args):
        for opt in trainer.optimizers: opt.train()

    def on_validation_start(self, trainer, *args):
        for opt in trainer.optimizers: opt.eval()

    on_test_start = on_train_end = on_validation_start


def in_lightning(build, epochs, folder, resume=False):
    "The weights and losses of Lightning's Trainer; it evaluates after each epoch, then saves."
    module = Module(build, epochs)
    saving = ModelCheckpoint(folder/'lightning', '{epoch}', save_top_k=-1, enable_version_counter=False)
    trainer = lightning.Trainer(
        accelerator='cpu', max_epochs=epochs, gradient_clip_val=1., num_sanity_val_steps=0, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=not resume,
        callbacks=[EvaluationPoint(), *[saving]*(not resume)])
    trainer.fit(module, batches(), batches(), ckpt_path=folder/'lightning'/'epoch=0.ckpt' if resume else None)
    return module.model, module.losses


class InOrder(transformers.Trainer):
    "Hugging Face's Trainer with the rows in their order. It calls `eval` and `train` of optimizers that have them."
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.losses = []

    def _get_train_sampler(self, dataset=None): return SequentialSampler(self.train_dataset)

    def compute_loss(self, model, inputs, *args, **kwargs):
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if model.training: self.losses.append(loss.item())
        return loss


class EvaluateAtEnd(transformers.TrainerCallback):
    "Leaves a model at the evaluation point, to be saved."
    def on_train_end(self, args, state, control, optimizer, **kwargs): optimizer.eval()


def in_trainer(build, epochs, folder, resume=False):
    "The weights and losses of Hugging Face's Trainer; it evaluates after each epoch, then saves."
    model, opt, sched = parts(build, epochs)
    args = transformers.TrainingArguments(
        folder/'hf', num_train_epochs=epochs, per_device_train_batch_size=BATCH, max_grad_norm=1., report_to=[],
        eval_strategy='epoch', save_strategy='no' if resume else 'epoch', disable_tqdm=True, use_cpu=True,
        logging_strategy='no', per_device_eval_batch_size=BATCH)
    trainer = InOrder(model, args, train_dataset=Words(), eval_dataset=Words(), optimizers=(opt, sched),
                      callbacks=[EvaluateAtEnd])
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train(resume_from_checkpoint=str(folder/'hf'/f'checkpoint-{STEPS}') if resume else None)
    return model, trainer.losses


def in_accelerate(build, epochs, folder, resume=False):
    "The weights and losses of a loop with Accelerate."
    acc = accelerate.Accelerator(cpu=True)
    model, opt, sched = parts(build, epochs)
    model, opt, sched, dl = acc.prepare(model, opt, sched, batches())
    losses = []
    if resume: acc.load_state(folder/'accelerate')
    for epoch in range(1 if resume else 0, epochs):
        opt.train()
        for batch in dl:
            with acc.accumulate(model):
                loss = model(**batch)['loss']
                acc.backward(loss)
                if acc.sync_gradients: acc.clip_grad_norm_(model.parameters(), 1.)
                opt.step()
                sched.step()
                opt.zero_grad()
            losses.append(loss.item())
        opt.eval()
        if epoch == 0 and not resume: acc.save_state(folder/'accelerate')
    return acc.unwrap_model(model), losses


LOOPS = {'plain': plain, 'plain, LambdaLR': partial(plain, schedule='lambda'), 'Lightning': in_lightning,
         'HF Trainer': in_trainer, 'Accelerate': in_accelerate}


def difference(a, b):
    "The largest difference of two models' weights."
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return max((x - y).abs().max().item() for x, y in pairs)


def verdict(loop, build, epochs):
    "What a loop did, as a cell of the table."
    with tempfile.TemporaryDirectory() as folder:
        model, losses = loop(build, epochs, Path(folder))
        again, further = loop(build, epochs, Path(folder), resume=True)
        # Lightning sums the norm of all gradients in the order of the groups
        first, _ = plain(build, epochs, Path(folder), by_group=loop is in_lightning)
    start, end = sum(losses[:5])/5, sum(losses[-5:])/5
    faults = [] if end < .8 * start else [f'loss {start:.2f} to {end:.2f}']
    if len(further) != len(losses) - STEPS: faults.append(f'resumed: {len(further)} steps')
    if difference(again, model) != 0: faults.append(f'resumed: {difference(again, model):.1e} off')
    if loop in (in_lightning, in_trainer, in_accelerate) and difference(first, model) != 0:
        faults.append(f'plain: {difference(first, model):.1e} off')
    return '; '.join(faults) or f'{start:.2f} to {end:.2f}'


def row(name, build, epochs):
    "A row of the table."
    cells = []
    for where, loop in LOOPS.items():
        try: cell = verdict(loop, build, epochs)
        except Exception as e: cell = f'{type(e).__name__}: {" ".join(str(e).split())[:150]}'  # the table shows it
        cells.append(cell)
        print(name, '|', where, '|', cell, flush=True)
    return f'| {name} | {" | ".join(cells)} |'


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--only', nargs='*', help='optimizers')
    ap.add_argument('--epochs', type=int, default=3)
    args = ap.parse_args()
    for nm in 'lightning', 'lightning.pytorch', 'transformers', 'accelerate': logging.getLogger(nm).setLevel('ERROR')
    warnings.filterwarnings('ignore', module='lightning')
    transformers.utils.logging.disable_progress_bar()
    cases = {nm: partial(row.build, lr=RATES.get(nm, row.lrs['onecycle'])) for nm, row in OPTIMIZERS.items()}
    cases |= {nm: partial(build, **dict(lr=.02) | options) for nm, (build, options) in OPTIONS.items()}
    rows = [row(nm, build, args.epochs) for nm, build in cases.items() if not args.only or nm in args.only]
    table = [f'| | {" | ".join(LOOPS)} |', '|--|' + '--|'*len(LOOPS), *rows]
    if not args.only: record('loops', '\n'.join(table), f'{args.epochs} epochs of {STEPS} batches',
                             ('lightning', 'transformers', 'accelerate'))


if __name__ == '__main__': main()
