"Records a run and saves what was recorded in its folder."
from typing import Any

from torch import nn

from miniai.activations import ActivationStats, get_hist
from miniai.diagnosis.profile import ProfileCB
from miniai.inference.model_file import MODEL_FILE
from miniai.jobs.run_folder import HistoryFileCB, RunFolder, as_json
from miniai.learner import ProgressCB
from miniai.models.layers import GeneralRelu
from miniai.optim.groups import rate_of
from miniai.report.pictures import activations_figure, curves_figure
from miniai.sgd import RecorderCB

__all__ = ['Recording', 'has_activations']


class Recording:
    """The callbacks, `cbs`, that record a run: progress, metrics, learning rates, with `stats` activation statistics,
    and with `profile` where the time goes."""
    def __init__(self, folder: RunFolder, stats: bool = True, profile: bool = False) -> None:
        self.folder, self.progress, self.rates = folder, ProgressCB(), RecorderCB(lr=lambda cb: rate_of(cb.pg))
        self.stats = ActivationStats(_is_activation) if stats else None
        self.profile = ProfileCB(quiet=True) if profile else None
        cbs = [self.progress, self.stats, self.rates, HistoryFileCB(folder), self.profile]
        self.cbs = [cb for cb in cbs if cb is not None]

    def save(self, learn: Any) -> None:
        """Save the model, and the pictures if at least one batch was trained; print and save the profile. Every process
        must call it, and the first one saves."""
        learn.save_model(self.folder.path/MODEL_FILE)
        if self.progress.losses:
            rates = self.rates.recs['lr']
            figure = curves_figure(learn.history, self.progress.losses, rates, len(learn.dls.train))
            self.folder.picture('curves.png', figure)
            if self.stats: self.folder.picture('activations.png', activations_figure(self._histograms(learn.model)))
        if self.profile and self.profile.rows: self._save_profile()

    def _histograms(self, model: nn.Module) -> dict[str, Any]:
        names = [f'{name} {type(m).__name__}' for name, m in model.named_modules() if _is_activation(m)]
        return {name: get_hist(hook).expm1() for name, hook in zip(names, self.stats, strict=True)}

    def _save_profile(self) -> None:
        from matplotlib.figure import Figure
        print(f'\n{self.profile.table()}\n')
        self.folder.write('profile.json', as_json(self.profile.rows, indent=1) + '\n')
        figure = Figure(figsize=(12, 4.5), layout='constrained')
        self.profile.plot(figure)
        self.folder.picture('profile.png', figure)


def has_activations(model: nn.Module) -> bool:
    "Whether there is something for activation statistics to record."
    return any(map(_is_activation, model.modules()))


def _is_activation(m: Any) -> bool: return isinstance(m, GeneralRelu | nn.ReLU | nn.GELU | nn.SiLU)
