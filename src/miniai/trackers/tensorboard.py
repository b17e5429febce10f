"Figures in TensorBoard's event files."
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from miniai.trackers.tracker import Tracker, free_name

__all__ = ['TensorBoardTracker']


class TensorBoardTracker(Tracker):
    """Writes event files to `tensorboard/NAME/` in the folder. Options go to torch's `SummaryWriter`. In a run that
    continues, TensorBoard forgets the figures of later steps. Configuration and alerts are texts; for a file it has
    its path."""
    package = 'tensorboard'
    def __init__(self, folder: Path, name: str, run: str | None, step: int, **options: Any) -> None:
        from torch.utils.tensorboard import SummaryWriter
        self.run = run or free_name(folder/'tensorboard', name)
        self.view = f'tensorboard --logdir {folder/"tensorboard"}'
        purge = dict(purge_step=step + 1) if run else {}
        self.writer = SummaryWriter(**(dict(log_dir=str(folder/'tensorboard'/self.run)) | purge | options))

    def config(self, values: Mapping[str, Any]) -> None:
        text = json.dumps(values, indent=1, default=str)
        self.writer.add_text('config', '\n'.join(f'    {line}' for line in text.splitlines()), 0)  # Markdown's code

    def figures(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        for step, values in rows:
            for nm, x in values.items(): self.writer.add_scalar(nm, x, step)
        self.writer.flush()

    def picture(self, name: str, png: Path, step: int) -> None:
        import numpy as np
        from PIL import Image
        with Image.open(png) as image: pixels = np.asarray(image.convert('RGB'))
        self.writer.add_image(name, pixels, step, dataformats='HWC')
        self.writer.flush()

    def alert(self, title: str, text: str, step: int) -> None:
        self.writer.add_text(f'verdicts/{title}', text, step)
        self.writer.flush()

    def file(self, path: Path) -> None: self.writer.add_text('files', str(path), 0)
    def close(self, how: str) -> None: self.writer.close()
