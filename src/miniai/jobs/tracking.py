"Tracks a run of a job with the trackers that its options name."
from collections.abc import Mapping, Sequence
from typing import Any

from miniai.callbacks.track import TrackCB
from miniai.distributed.ranks import is_first
from miniai.inference.model_file import MODEL_FILE
from miniai.jobs.run_folder import RunFolder

__all__ = ['Tracking']


class Tracking:
    "The callbacks, `cbs`, that track a run with the `trackers` named, each with its store in the run folder."
    def __init__(self, folder: RunFolder, trackers: Sequence[str], config: Mapping[str, Any]) -> None:
        self.folder = folder.path
        self.cbs = [TrackCB(nm, self.folder, name=self.folder.name, config=config, model=False, keep_open=True)
                    for nm in trackers]

    def finish(self) -> None:
        "Give the trackers the pictures and the model of the run folder, and print how to see what they have."
        for cb in self.cbs if is_first() else ():
            for path in sorted(self.folder.glob('*.png')): cb.picture(path.stem, path)
            if (self.folder/MODEL_FILE).exists(): cb.file(self.folder/MODEL_FILE)
            cb.close()
            if cb.view: print(f'tracked: {cb.view}')
