"Augmentation and looks at data and predictions, by the names that notebooks import."
import miniai.augment
from miniai.learner import Learner
from reexports import check_reexports


def test_the_names_are_those_of_the_library():
    check_reexports('augment', {
        'images': 'mirror rand_flip RandFlip rand_crop RandCrop rand_translate RandTranslate rand_erase RandErase '
                  'rand_copy RandCopy',
        'callbacks.mix': 'MixUpCB CutMixCB', 'callbacks.train_loss': 'TrainLossCB LabelSmoothingCB',
        'diagnosis.capture': 'CapturePreds capture_preds show_image_batch', 'diagnosis.tta': 'tta',
        'diagnosis.summary': 'summary'})


def test_the_learners_methods_are_these_functions():
    for name in ('summary', 'show_image_batch', 'capture_preds', 'tta'):
        assert getattr(Learner, name) is getattr(miniai.augment, name)
