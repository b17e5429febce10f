"""Changes that a user makes to a script between stopping and resuming it. Each is one replacement in a script of the
folder scripts_to_change."""
from dataclasses import dataclass, field


@dataclass
class Change:
    name: str
    what: str  # one line
    script: str
    old: str
    new: str
    names: str = ''  # a regular expression: a refusal or warning names one of these
    expect: str = 'refused|warned'
    epochs: int = 2
    saving: dict = field(default_factory=dict)  # options of CheckpointCB when it resumes
    stop: tuple = ('train', 1, 2)
    times: int = 1  # how often `old` is there

    def applied(self, text):
        found = text.count(self.old)
        assert found == self.times, f'{self.name}: {self.old!r} is {found} times in {self.script}'
        return text.replace(self.old, self.new)


CHANGES = {}


def change(name, what, script, old, new, names='', expect='refused|warned', **options):
    assert name not in CHANGES
    CHANGES[name] = Change(name, what, script, old, new, names, expect, **options)


def harmless(name, what, script, old, new, **options):
    change(name, what, script, old, new, expect='harmless', **options)


# The model
change('dropout', 'p of a Dropout', 'images', 'nn.Dropout(0.2)', 'nn.Dropout(0.3)', r'Dropout|7\.p|model\.7|module 7|p')
change('batchnorm_eps', 'eps of a BatchNorm', 'images', 'eps=1e-5', 'eps=1e-3', r'eps|BatchNorm2d')
change('batchnorm_momentum', 'momentum of a BatchNorm', 'images', 'nn.BatchNorm2d(b)',
       'nn.BatchNorm2d(b, momentum=0.3)', 'momentum|BatchNorm2d')
change('stride', 'strides of two convolutions, all shapes of parameters the same', 'images',
       'stride=2, padding=1), nn.BatchNorm2d(a, eps=1e-5), nn.ReLU(),\n        nn.Conv2d(a, b, 3, stride=2',
       'stride=1, padding=1), nn.BatchNorm2d(a, eps=1e-5), nn.ReLU(),\n        nn.Conv2d(a, b, 3, stride=4',
       'stride|Conv2d')
change('dilation', 'padding and dilation of a convolution', 'images', 'nn.Conv2d(1, a, 3, stride=2, padding=1)',
       'nn.Conv2d(1, a, 3, stride=2, padding=2, dilation=2)', 'dilation|padding|Conv2d')
change('padding_mode', 'padding_mode of a convolution', 'images', 'padding=1, bias=False',
       "padding=1, bias=False, padding_mode='circular'", 'padding_mode|Conv2d')
change('activation', 'the activation function', 'memory', 'nn.GELU()', 'nn.SiLU()', 'GELU|SiLU')
change('activation_option', 'an option of the activation function', 'memory', 'nn.GELU()', "nn.GELU('tanh')",
       'GELU|approximate')
change('activation_in_attribute', 'the activation held as an attribute', 'table', 'nn.ReLU()', 'nn.ELU()', 'ReLU|ELU')
change('width', "the model's width", 'table', 'Net()', 'Net(width=20)', 'inp.weight|inp|weight|width')
change('layer_order', 'the order of layers, shapes the same', 'memory', 'nn.GELU(), nn.LayerNorm(16)',
       'nn.LayerNorm(16), nn.GELU()', 'GELU|LayerNorm')
change('module_number', 'a plain number of a module', 'table', 'Net()', 'Net(slope=0.3)', 'slope|Net')
change('module_constant', 'a whole number in a constructor', 'table', 'nn.ReLU(), 1, slope', 'nn.ReLU(), 3, slope',
       'depth|Net')
change('model_class_attribute', "a class attribute of the model", 'table', 'scale = 2.0', 'scale = 1.0', 'scale|Net')
change('forward', "the body of the model's forward", 'table', 'self.slope*h.tanh()', 'self.slope*h.sin()',
       'forward|Net')
change('dtype', "the model's dtype", 'table', 'net = Net()',
       'net = Net().double()\n    torch.set_default_dtype(torch.float64)', 'float64|dtype')
change('frozen', 'a layer is frozen', 'memory', '    learn = TrainLearner',
       '    net[0].requires_grad_(False)\n    learn = TrainLearner', r'0\.weight|frozen|requires_grad')
change('initialization', 'another initialization: the checkpoint has the weights', 'memory', '    learn = TrainLearner',
       '    nn.init.zeros_(net[0].bias)\n    learn = TrainLearner', expect='harmless')

# The loss
change('label_smoothing', 'label smoothing in the loss function', 'images', 'label_smoothing=0.1',
       'label_smoothing=0.2', 'loss|label_smoothing')
change('class_weights', 'class weights of nn.CrossEntropyLoss: a buffer, like those of the model', 'table',
       '[1.0, 2.0, 1.0]', '[1.0, 3.0, 1.0]',
       'weight|CrossEntropyLoss|loss', expect='refused|warned|harmless')
change('loss_option', 'label_smoothing of nn.CrossEntropyLoss', 'table', 'nn.CrossEntropyLoss(weight',
       'nn.CrossEntropyLoss(label_smoothing=0.2, weight', 'label_smoothing|CrossEntropyLoss')
change('loss_reduction', 'reduction of nn.CrossEntropyLoss', 'table', 'nn.CrossEntropyLoss(weight',
       "nn.CrossEntropyLoss(reduction='sum', weight", 'reduction|CrossEntropyLoss')
change('loss_function', 'the loss function', 'table', 'nn.CrossEntropyLoss(weight', 'nn.MultiMarginLoss(weight',
       'loss|MultiMarginLoss')
change('global_of_loss', 'a global constant that the loss reads', 'images', 'PENALTY = 0.01', 'PENALTY = 0.1',
       'PENALTY|loss')
change('global_list_of_loss', 'a list that the loss reads', 'memory', '[2, 0, 1]', '[0, 2, 1]', 'order|loss')
change('loss_body', 'the body of the loss function', 'images', 'out.square().mean()\n', 'out.abs().mean()\n', 'loss')

# Callbacks
change('mixup_alpha', 'alpha of MixUpCB', 'images', 'MixUpCB(0.4)', 'MixUpCB(0.8)', 'MixUpCB|alpha')
change('callback_option', "an option of a user's callback", 'images', 'PenaltyCB(0.1)', 'PenaltyCB(0.3)',
       'PenaltyCB|strength')
change('callback_class_attribute', "a class attribute of a user's callback", 'images', 'power = 2', 'power = 1',
       'PenaltyCB|power')
change('callback_method', "the body of a user's callback", 'images', '.abs().pow(', '.tanh().abs().pow(',
       'PenaltyCB|after_loss')
change('callback_removed', "a user's callback is removed", 'table', '        ShrinkCB(0.9),\n', '', 'ShrinkCB')
change('callback_added', "a user's callback is added", 'memory', 'WarmCB()]', 'WarmCB(), WarmCB()]', 'WarmCB')
change('callbacks_swapped', 'two callbacks trade places', 'table', 'FlipCB(),\n        AddCB(),',
       'AddCB(),\n        FlipCB(),', 'FlipCB|AddCB')
change('transform_removed', 'a batch transform is removed', 'images',
       '        BatchTransformCB(lambda b: (erase(b[0]), b[1]), on_val=False),\n', '', 'BatchTransformCB|RandErase')
change('transform_option', 'an option of RandErase', 'images', 'RandErase(0.2, 2)', 'RandErase(0.4, 2)',
       'RandErase|erase|pct')
change('lambda_body', "the body of a transform's lambda", 'images', 'b[0]*1.1', 'b[0]*1.3',
       r'BatchTransformCB|tfm|lambda|<lambda>')
change('on_val', 'on_val of BatchTransformCB', 'images', 'lambda b: (b[0]*1.1, b[1]), on_val=False',
       'lambda b: (b[0]*1.1, b[1]), on_train=False', 'BatchTransformCB|on_val|on_train')
change('accumulate', 'n of AccumulateCB', 'table', 'AccumulateCB(2)', 'AccumulateCB(3)', 'AccumulateCB|n')
change('patience', 'patience of EarlyStoppingCB', 'table', 'patience=3', 'patience=1', 'EarlyStoppingCB|patience',
       expect='refused|warned|harmless')
change('global_dict', 'a number in a global dict that a callback reads', 'memory', 'gamma=0.5', 'gamma=0.9',
       'options|WarmCB')
change('nested_global', 'a number in a list in a global dict', 'memory', '[1.0, 0.1]', '[1.0, 0.5]', 'options|WarmCB')

# The data
change('one_label', 'one label of a list', 'images', '        self.weights =',
       '        self.y[5] = (self.y[5] + 1) % 3\n        self.weights =', 'y|data|Images|dataset')
change('one_label_in_tensor', 'one label of a tensor', 'table', '    return x, y\n\n\ndef collate',
       '    y[3] = (y[3] + 1) % 3\n    return x, y\n\n\ndef collate', 'data|tensors|TensorDataset|dataset')
change('one_label_in_memory', 'one label of the arrays in memory', 'memory', 'order =',
       'y[10] = (y[10] + 1) % 3\norder =', 'data|tensors')
change('one_pixel', 'one pixel of the images', 'images', '        self.weights =',
       '        self.x[7, 0, 0, 0] = 0.5\n        self.weights =', 'x|data|Images|dataset')
change('epochs_raised', 'three epochs instead of two: ends as three would', 'table', 'set_seed(1)', 'set_seed(1)',
       epochs=3, expect='harmless')
change('numpy_data', 'a numpy array in the dataset', 'images', 'np.linspace(0.5', 'np.linspace(0.7',
       'weights|Images|data|dataset')
change('dataset_attribute', 'a class attribute of the dataset', 'images', 'mean = 0.5', 'mean = 0.4',
       'mean|Images|dataset')
change('validation_data', 'the validation set', 'images', 'Images(16, 1)', 'Images(16, 2)', 'validation|valid|data')
change('training_size', 'the number of samples', 'images', 'Images(48, 0,', 'Images(56, 0,',
       'data|samples|batches|dataset')
change('transforms_order', 'the order of transforms', 'images', '[scale, shift,', '[shift, scale,',
       'transforms|scale|shift|dataset')
change('transforms_list', 'a transform is removed from the list', 'images', '[scale, shift,', '[shift,',
       'transforms|scale|dataset')
change('transform_partial', 'an argument of a partial in the list', 'images', 'level=0.1', 'level=0.2',
       'level|noise|transforms|dataset')
change('default_argument', "a function's default argument", 'images', 'by=0.1', 'by=0.3', 'shift|by|transforms|dataset')
change('global_of_transform', 'a global constant that a transform reads', 'images', 'GAIN = 1.5', 'GAIN = 1.2',
       'GAIN|scale|transforms|dataset')
change('getitem', "the body of the dataset's __getitem__", 'images', '*self.weights[i]', '*self.weights[i]**2',
       '__getitem__|Images|dataset')
change('collate', 'the body of collate_fn', 'table', 'return x*factor, y', 'return x + factor, y', 'collate')
change('collate_partial', 'an argument of collate_fn', 'table', 'factor=0.9', 'factor=0.8', 'collate|factor')
change('sampler_weights', 'weights of the sampler', 'table', '[2.0]*24', '[3.0]*24',
       'sampler|weights|order|WeightedRandomSampler')
change('sampler_seed', "the seed of the sampler's generator: the checkpoint has its state", 'table', 'manual_seed(5)',
       'manual_seed(6)', 'sampler|seed|generator', expect='refused|warned|harmless')
change('batch_size', 'batch size', 'images', 'BS = 8', 'BS = 12', 'batch|bs|batches|batch_size')
change('shuffle', 'shuffle=False', 'images', 'shuffle=True', 'shuffle=False', 'shuffle|order|sampler')
change('drop_last', 'drop_last, where it changes nothing', 'images', 'drop_last=False', 'drop_last=True', 'drop_last',
       expect='harmless|warned|refused')
change('memory_seed', 'the seed of loaders in memory', 'memory', 'seed=3', 'seed=4', 'seed|data|order')
change('memory_split', 'the share of the validation set', 'memory', 'valid=0.2', 'valid=0.3',
       'valid|data|samples|batches')
change('workers', 'two workers, for a dataset that draws nothing', 'table', '8, sampler=sampler,',
       '8, sampler=sampler, num_workers=2,', 'workers|num_workers', expect='harmless|warned')
change('workers_of_drawing_dataset', 'two workers, for a dataset that draws', 'images', 'num_workers=0',
       'num_workers=2', r'num_workers|worker\(s\)')

# Optimizer and schedule
change('optimizer_class', 'the optimizer', 'memory', 'optim.SGD', 'optim.Adagrad', 'optimizer|Adagrad|SGD')
change('optimizer_of_same_options', 'Adam instead of AdamW', 'table', 'optim.AdamW', 'optim.Adam',
       'optimizer|AdamW|Adam')
change('lr', 'the learning rate', 'memory', 'loss, 0.05,', 'loss, 0.1,', 'lr')
change('lr_under_schedule', 'the learning rate, with a schedule', 'table', 'loss, 1e-2,', 'loss, 2e-2,', 'lr|base_lrs')
change('weight_decay', 'weight decay', 'table', 'weight_decay=0.01', 'weight_decay=0.1', 'weight_decay')
change('betas', 'betas', 'table', 'betas=(0.9, 0.99)', 'betas=(0.8, 0.99)', 'betas')
change('eps', 'eps', 'table', 'eps=1e-8', 'eps=1e-4', 'eps')
change('wd', "wd of miniai's AdamW", 'images', 'wd=0.01', 'wd=0.1', 'wd|weight_decay')
change('clip_norm', 'clip_norm', 'images', 'clip_norm=1.0', 'clip_norm=0.1', 'clip_norm')
change('ema', 'ema', 'images', 'ema=0.9', 'ema=0.8', 'ema')
change('without_ema', 'ema is switched off', 'images', ', ema=0.9', '', 'ema')
change('schedule_class', 'the class of a schedule', 'images', 'lr_scheduler.OneCycleLR, max_lr=2e-2, total_steps=18',
       'lr_scheduler.CosineAnnealingLR, T_max=18', 'OneCycleLR|CosineAnnealingLR|schedule')
change('schedule_argument', "an argument of a schedule", 'images', 'max_lr=2e-2', 'max_lr=3e-2',
       'max_lr|OneCycleLR|schedule|lr')
change('schedule_length', 'the length of a schedule', 'images', 'total_steps=18', 'total_steps=24',
       'total_steps|OneCycleLR|schedule')
change('schedule_lambda', "the body of a schedule's lambda", 'table', 'decay(e)*1.0', 'decay(e)*0.5',
       'lambda|lr_lambda|LambdaLR|schedule|EpochSchedCB')
change('schedule_function', 'a function that the lambda calls', 'table', '0.5**epoch', '0.3**epoch',
       'decay|lambda|LambdaLR|schedule|EpochSchedCB')
change('schedule_later_values', 'values of a schedule that come later', 'table', 'return 0.5**epoch',
       'return 0.5**epoch if epoch < 2 else 0.', 'decay|lambda|LambdaLR|schedule|EpochSchedCB',
       expect='refused|warned|harmless')
change('schedule_removed', 'the schedule is removed', 'table',
       '        EpochSchedCB(partial(optim.lr_scheduler.LambdaLR, lr_lambda=lambda e: decay(e)*1.0)),\n', '',
       'EpochSchedCB|schedules?')
change('schedule_per_epoch', 'the schedule is stepped per epoch', 'images', 'BatchSchedCB', 'EpochSchedCB',
       'BatchSchedCB|EpochSchedCB', times=2)

# Harmless
harmless('nothing_images', 'nothing', 'images', 'BS = 8\n', 'BS = 8\n')
harmless('nothing_table', 'nothing', 'table', 'set_seed(1)', 'set_seed(1)')
harmless('nothing_memory', 'nothing', 'memory', 'set_seed(7)', 'set_seed(7)')
harmless('comment', 'a comment and an empty line', 'images', 'def shift(', '# Move it a little.\n\n\ndef shift(')
harmless('docstring', 'a docstring of a function', 'table', 'def decay(epoch): ',
         'def decay(epoch):\n    "Half as much each epoch."\n    ')
harmless('lines_move', 'an unrelated function above others', 'images', 'def loss(',
         'def unrelated(): return 1\n\n\ndef loss(')
harmless('print_added', 'a print in make', 'table', '    net = Net()', '    print("starting")\n    net = Net()')
harmless('unused_import', 'an import that nothing uses', 'images', 'from functools import partial\n',
         'import json\nfrom functools import partial\n')
harmless('seed', 'the seed of the script: the checkpoint has the random states', 'images', 'SEED = 42', 'SEED = 43')
change('metrics_changed', 'another metric', 'memory', 'accuracy=accuracy)', 'hits=accuracy)',
       'MetricsCB|accuracy|hits', expect='harmless|refused|warned')
harmless('progress_added', 'ProgressCB is added', 'table', 'FlipCB(),\n', 'miniai.ProgressCB(),\n        FlipCB(),\n',
         names='ProgressCB')
harmless('saves_less_often', 'CheckpointCB saves every epoch only', 'memory', 'set_seed(7)', 'set_seed(7)',
         saving=dict(batches=None))
harmless('keeps_more', 'CheckpointCB keeps five, in the background', 'memory', 'set_seed(7)', 'set_seed(7)',
         saving=dict(keep=5, background=True))
harmless('keeps_best', 'CheckpointCB keeps the best', 'memory', 'set_seed(7)', 'set_seed(7)',
         saving=dict(best='accuracy'))
harmless('attribute_of_learner', 'a note on the Learner', 'memory', '    return learn',
         "    learn.note = 'second try'\n    return learn")
change('data_path', "the dataset's path; the same content", 'images', "DATA = '/data/v1'", "DATA = '/mnt/data/v1'",
       'path|DATA|Images', expect='harmless|warned|refused')
change('threads', 'the number of threads', 'table', 'set_seed(1)', 'set_seed(1)\n    torch.set_num_threads(2)',
       'threads')
change('rewritten_loss', 'the same loss function, rewritten', 'memory',
       'def loss(out, y): return F.cross_entropy(out, torch.tensor(order)[y])',
       'def loss(out, y):\n    targets = torch.tensor(order)[y]\n    return F.cross_entropy(out, targets)', 'loss',
       expect='harmless|warned|refused')
