"Figures in Weights & Biases."
import netrc
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from miniai.trackers.tracker import Tracker, key_of

__all__ = ['WandbTracker']


class WandbTracker(Tracker):
    """A run of Weights & Biases. Unless WANDB_MODE or the option `mode` says otherwise, it is online if the user is
    logged in, and otherwise offline: kept in `wandb/` in the folder until `wandb sync`. Options go to `wandb.init`;
    the project is miniai by default. A run that continues offline has the same id in another folder, and
    `wandb sync` joins them."""
    package = 'wandb'
    def __init__(self, folder: Path, name: str, run: str | None, step: int, **options: Any) -> None:
        import wandb
        folder.mkdir(parents=True, exist_ok=True)
        mode = options.pop('mode', None) or os.environ.get('WANDB_MODE') or ('online' if _logged_in() else 'offline')
        again = dict(id=run) | (dict(resume='allow') if mode == 'online' else {}) if run else {}
        first = dict(project=os.environ.get('WANDB_PROJECT', 'miniai'), name=name, dir=str(folder),
                     settings=wandb.Settings(silent=True, console='off'))
        self.tracked = wandb.init(mode=mode, **first | again | options)
        self.run, self.image = self.tracked.id, wandb.Image
        self.view = self.tracked.url if mode == 'online' else f'wandb sync {Path(self.tracked.dir).parent}'

    def config(self, values: Mapping[str, Any]) -> None: self.tracked.config.update(dict(values), allow_val_change=True)

    def figures(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        for step, values in rows: self.tracked.log(dict(values), step=step)

    def picture(self, name: str, png: Path, step: int) -> None:
        self.tracked.log({f'pictures/{name}': self.image(str(png))}, step=step)

    def alert(self, title: str, text: str, step: int) -> None:
        self.tracked.alert(title, text)
        self.tracked.summary[f'verdict/{title}'] = text

    def file(self, path: Path) -> None:
        self.tracked.log_artifact(str(path), name=key_of(f'model-{self.run}'), type='model')

    def close(self, how: str) -> None: self.tracked.finish(exit_code=int(how == 'failed'))


def _logged_in() -> bool:
    "Is there a key for the server, where `wandb login` and its documentation say that keys are?"
    if os.environ.get('WANDB_API_KEY'): return True
    host = urlsplit(os.environ.get('WANDB_BASE_URL', 'https://api.wandb.ai')).hostname
    file = os.environ.get('NETRC') or next((p for p in map(os.path.expanduser, ('~/.netrc', '~/_netrc'))
                                            if os.path.exists(p)), None)
    try: return bool(file and netrc.netrc(file).authenticators(host))
    except (OSError, netrc.NetrcParseError): return False
