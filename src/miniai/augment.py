"Augmentation, and tools to inspect data, model and predictions, by the names that notebooks import."
from miniai.callbacks.mix import CutMixCB as CutMixCB
from miniai.callbacks.mix import MixUpCB as MixUpCB
from miniai.callbacks.train_loss import LabelSmoothingCB as LabelSmoothingCB
from miniai.callbacks.train_loss import TrainLossCB as TrainLossCB
from miniai.diagnosis.capture import CapturePreds as CapturePreds
from miniai.diagnosis.capture import capture_preds as capture_preds
from miniai.diagnosis.capture import show_image_batch as show_image_batch
from miniai.diagnosis.summary import summary as summary
from miniai.diagnosis.tta import tta as tta
from miniai.images import RandCopy as RandCopy
from miniai.images import RandCrop as RandCrop
from miniai.images import RandErase as RandErase
from miniai.images import RandFlip as RandFlip
from miniai.images import RandTranslate as RandTranslate
from miniai.images import mirror as mirror
from miniai.images import rand_copy as rand_copy
from miniai.images import rand_crop as rand_crop
from miniai.images import rand_erase as rand_erase
from miniai.images import rand_flip as rand_flip
from miniai.images import rand_translate as rand_translate

__all__ = ['summary', 'show_image_batch', 'capture_preds', 'CapturePreds', 'rand_erase', 'RandErase',
           'rand_copy', 'RandCopy', 'mirror', 'rand_flip', 'RandFlip', 'rand_crop', 'RandCrop',
           'rand_translate', 'RandTranslate', 'MixUpCB', 'CutMixCB', 'TrainLossCB', 'LabelSmoothingCB', 'tta']
