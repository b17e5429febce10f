"What records a run as it goes, and what its folder gets of that. Knows callbacks, pictures and the folder."
from typing import Any

from miniai.activations import ActivationStats
from miniai.diagnosis.profile import ProfileCB
from miniai.jobs.run_folder import HistoryFileCB, RunFolder, as_json
from miniai.learner import ProgressCB
from miniai.models.layers import GeneralRelu
from miniai.report.pictures import activations_figure, curves_figure, profile_figure
from miniai.sgd import RecorderCB

__all__ = ['Recording']


class Recording:
    """The callbacks, `cbs`, that record a run for its folder: progress, activations, learning rates, rows of figures,
    and, with `profile`, where the time goes."""
    def __init__(self, folder: RunFolder, profile: bool = False) -> None:
        self.folder, self.progress, self.stats = folder, ProgressCB(), ActivationStats(_is_activation)
        self.rates, self.profile = RecorderCB(lr=lambda cb: cb.pg['lr']), ProfileCB(quiet=True)
        self.cbs = [self.progress, self.stats, self.rates, HistoryFileCB(folder), *([self.profile] if profile else [])]

    def leave(self, learn: Any) -> None:
        "Leave the model and, of batches that there were, the pictures."
        self.folder.save_model(learn.model)
        if not self.progress.losses: return
        losses, lrs = self.progress.losses, self.rates.recs['lr']
        self.folder.picture('curves.png', curves_figure(learn.history, losses, lrs, len(learn.dls.train)))
        self.folder.picture('activations.png', activations_figure(self.stats))

    def leave_profile(self) -> None:
        "Print and leave where the time went, if that was recorded."
        if not self.profile.rows: return
        print(f'\n{self.profile.table()}\n')
        self.folder.write('profile.json', as_json(self.profile.rows, indent=1) + '\n')
        self.folder.picture('profile.png', profile_figure(self.profile))


def _is_activation(m: Any) -> bool: return isinstance(m, GeneralRelu)
