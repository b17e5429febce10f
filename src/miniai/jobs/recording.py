"Records a run and saves what was recorded in its folder."
import sys
import warnings
from typing import Any

from torch import nn

from miniai.activations import ActivationStats, get_hist
from miniai.diagnosis.health import HealthCB
from miniai.diagnosis.profile import ProfileCB
from miniai.inference.facts import model_facts, step_facts
from miniai.inference.model_file import MODEL_FILE
from miniai.inference.validated import ValidatedCB
from miniai.jobs.records import RecordsCB, ReportCB
from miniai.jobs.run_folder import HistoryFileCB, RunFolder, as_json, recorded
from miniai.learner import ProgressCB
from miniai.models.layers import GeneralRelu
from miniai.optim.groups import rate_of
from miniai.report.pictures import activations_figure, curves_figure
from miniai.sgd import RecorderCB

__all__ = ['Recording', 'has_activations']


class Recording:
    """The callbacks, `cbs`, that record a run: progress, metrics, learning rates, predictions, with `stats` activation
    statistics, with `profile` where the time goes, and with `health` what is wrong."""
    def __init__(self, folder: RunFolder, stats: bool = True, profile: bool = False,
                 health: bool = True) -> None:
        self.folder, self.progress, self.rates = folder, ProgressCB(), RecorderCB(lr=lambda cb: rate_of(cb.pg))
        self.stats = ActivationStats(_is_activation) if stats else None
        self.profile = ProfileCB(quiet=True) if profile else None
        self.health, validated = HealthCB(file=folder.path/'health.json') if health else None, ValidatedCB()
        self.records = RecordsCB(folder, self.progress, self.rates, validated)
        cbs = [self.progress, self.stats, self.rates, validated, HistoryFileCB(folder), self.records, self.profile,
               self.health, ReportCB(folder)]
        self.cbs = [cb for cb in cbs if cb is not None]

    def save(self, learn: Any) -> None:
        """Save the model, and the pictures if at least one batch was trained; print and save the profile. Every process
        must call it, and the first one saves. If the model cannot be saved, the rest is; after an error of the run,
        that one is raised, and this one is a warning."""
        ends_by = sys.exception()
        try: learn.save_model(self.folder.path/MODEL_FILE)
        except OSError as e:
            if ends_by is None: raise
            warnings.warn(str(e), stacklevel=2)
        finally: self._save_pictures(learn)
        if ends_by is None: self.records.write('model', lambda: model_facts(learn) | step_facts(learn))

    def _save_pictures(self, learn: Any) -> None:
        if self.progress.losses:
            self.records.write_batches()
            losses, rates = self.progress.losses, self.rates.recs['lr']
            with recorded('curves.png'):
                self.folder.picture('curves.png', curves_figure(learn.history, losses, rates, len(learn.dls.train)))
            if self.stats: self._save_activations(learn.model)
        if self.profile and self.profile.rows: self._save_profile()

    def _save_activations(self, model: nn.Module) -> None:
        with recorded('activations.png'):
            self.folder.picture('activations.png', activations_figure(self._histograms(model)))

    def _histograms(self, model: nn.Module) -> dict[str, Any]:
        names = [f'{name} {type(m).__name__}' for name, m in model.named_modules() if _is_activation(m)]
        return {name: get_hist(hook).expm1() for name, hook in zip(names, self.stats, strict=True)}

    def _save_profile(self) -> None:
        from matplotlib.figure import Figure
        print(f'\n{self.profile.table()}\n')
        with recorded('profile.json'):
            self.folder.write('profile.json', as_json(self.profile.rows, indent=1) + '\n')
        with recorded('profile.png'):
            figure = Figure(figsize=(12, 4.5), layout='constrained')
            self.profile.plot(figure)
            self.folder.picture('profile.png', figure)


def has_activations(model: nn.Module) -> bool:
    "Whether there is something for activation statistics to record."
    return any(map(_is_activation, model.modules()))


def _is_activation(m: Any) -> bool: return isinstance(m, GeneralRelu | nn.ReLU | nn.GELU | nn.SiLU)
