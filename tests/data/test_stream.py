"A loader of a stream tells the stream its epoch, and gives what the stream gives."
from itertools import chain

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from miniai.data.loaders import DataLoaders, get_dls
from miniai.data.parts import in_parts
from miniai.data.stream import StreamLoader, is_hf_stream
from miniai.distributed import rank
from ranks import run_ranks
from small import learner

hf = pytest.importorskip('datasets')


def stream(n=10, num_shards=2):
    ds = hf.Dataset.from_dict(dict(y=list(range(n)), x=[[float(i), 1.] for i in range(n)]))
    return ds.to_iterable_dataset(num_shards=num_shards).with_format('torch')


def shuffled(n=10): return stream(n).shuffle(seed=3, buffer_size=4)


def drawn(dl): return [b[0].tolist() for b in dl]


class Told(IterableDataset):
    "Ten numbers, with the epoch it was told in front."
    def __init__(self): self.epoch, self.told = None, []
    def set_epoch(self, epoch):
        self.epoch = epoch
        self.told.append(epoch)

    def __iter__(self):
        worker = get_worker_info()
        for i in range(10)[worker.id::worker.num_workers] if worker else range(10): yield 100*self.epoch + i


class Numbers(IterableDataset):
    def __iter__(self): return iter(range(5))


@pytest.mark.parametrize('workers', [0, 2])
def test_each_pass_over_a_shuffled_stream_has_the_order_of_its_epoch(workers):
    dls = DataLoaders.from_dd(hf.IterableDatasetDict(train=shuffled(), test=stream(5)), 4, num_workers=workers)
    passes = [drawn(dls.train) for _ in range(3)]
    for epoch, batches in enumerate(passes):
        expected = shuffled()
        expected.set_epoch(epoch)
        plain = torch.utils.data.DataLoader(expected, 4, num_workers=workers)
        assert batches == [b['y'].tolist() for b in plain]
        assert sorted(i for b in batches for i in b) == list(range(10))
    assert len({str(p) for p in passes}) == 3


@pytest.mark.filterwarnings('ignore:.*max number of worker:UserWarning')
@pytest.mark.parametrize('workers', [0, 2])
def test_a_stream_is_told_the_epoch_before_each_pass(workers):
    dl = StreamLoader(Told(), 5, num_workers=workers)
    for epoch in (0, 1, 7):
        dl.epoch = epoch
        assert sorted(i for b in dl for i in b.tolist()) == list(range(100*epoch, 100*epoch + 10))
        assert dl.epoch == epoch + 1
    assert dl.dataset.told == [0, 1, 7]


def test_a_stream_without_set_epoch_is_read_as_it_is():
    dl = StreamLoader(Numbers(), 2)
    for _ in range(2): assert [b.tolist() for b in dl] == [[0, 1], [2, 3], [4]]


def test_an_unshuffled_stream_keeps_its_order_and_the_validation_stream_does_so_in_each_epoch():
    dls = DataLoaders.from_dd(dict(train=stream(10, 1), valid=shuffled(6)), 4, drop_last=True)
    for _ in range(2): assert drawn(dls.train) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    expected = [r['y'].item() for r in shuffled(6)]
    dls = DataLoaders.from_dd(dict(train=stream(10, 1), valid=shuffled(6)), 3)
    for _ in range(2): assert drawn(dls.valid) == [expected]


def test_a_dry_run_does_not_count_as_an_epoch():
    ds = hf.Dataset.from_dict(dict(x=torch.randn(20, 4).tolist(), y=[i % 3 for i in range(20)]))
    s = ds.to_iterable_dataset().with_format('torch')
    learn = learner(dls=DataLoaders.from_dd(dict(train=s, valid=s), 4))
    learn.fit(1)
    learn.lr_find(max_epochs=2)
    learn.summary()
    assert learn.dls.train.epoch == 1


# The order of a tuple

def rows():
    for i in range(5): yield dict(b=i, a=-i)


def test_tuples_of_a_stream_without_features_are_in_the_order_of_its_first_sample_s_keys():
    s = hf.IterableDataset.from_generator(rows)
    assert s.features is None
    (b, a), = DataLoaders.from_dd(dict(train=s, test=s), 5).train
    assert (b.tolist(), a.tolist()) == ([0, 1, 2, 3, 4], [0, -1, -2, -3, -4])
    batch, = DataLoaders.from_dd(dict(train=s, test=s), 5, as_tuple=False).train
    assert {k: x.tolist() for k, x in batch.items()} == dict(b=[0, 1, 2, 3, 4], a=[0, -1, -2, -3, -4])


def test_samples_of_a_stream_that_are_no_dicts_are_an_error_that_says_what_to_do():
    dls = DataLoaders.from_dd(dict(train=Numbers(), test=Numbers()), 5)
    said = 'must be dicts .*got type int: pass collate_fn, or as_tuple=False'
    with pytest.raises(TypeError, match=said): next(iter(dls.train))
    dls = DataLoaders.from_dd(dict(train=Numbers(), test=Numbers()), 5, as_tuple=False)
    assert [b.tolist() for b in dls.train] == [[0, 1, 2, 3, 4]]


def test_get_dls_of_a_stream_gives_a_stream_loader_for_training_alone():
    train, valid = get_dls(Numbers(), Numbers(), 2)
    assert (type(train), type(valid)) == (StreamLoader, torch.utils.data.DataLoader)
    assert [[b.tolist() for b in dl] for dl in (train, valid)] == [[[0, 1], [2, 3], [4]], [[0, 1, 2, 3], [4]]]


# Several processes

def numbers(n): return hf.Dataset.from_dict(dict(x=list(range(n)))).with_format('torch')
def parted(shards, seed=3): return numbers(22).to_iterable_dataset(shards).shuffle(seed=seed, buffer_size=4)


def parts():
    "Three passes over the parts of streams: of shards, of shards with persistent workers, of samples."
    torch.manual_seed(rank())
    loaders = [StreamLoader(parted(shards), 4, num_workers=workers, persistent_workers=workers > 0,
                            multiprocessing_context='fork' if workers else None)
               for shards, workers in ((4, 0), (4, 2), (3, 0))]
    found = [[[batch['x'].tolist() for batch, _ in in_parts(dl)] for _ in range(3)] for dl in loaders]
    assert all(dl.dataset._distributed is None and dl.batch_size == dl.batch_sampler.batch_size == 4 for dl in loaders)
    return found


def test_a_stream_of_hugging_face_is_divided_by_shards_if_it_can_or_else_by_samples():
    both = run_ranks(parts, 2)
    for first, second in zip(*both, strict=True):
        for a, b in zip(first, second, strict=True):
            assert sorted(chain(*a, *b)) == list(range(22))
            assert [len(batch) for batch in a[:3]] == [2, 2, 2]
        assert len({str(p) for p in first}) == 3
    for epoch, samples in enumerate(zip(both[0][2], both[1][2], strict=True)):
        whole = parted(3)
        whole.set_epoch(epoch)
        order = [row['x'].item() for row in whole]
        assert [[*chain(*part)] for part in samples] == [order[::2], order[1::2]]


def refused():
    with pytest.raises(ValueError, match='batch size, 5, is divided over 2 processes; use a multiple of 2'):
        next(in_parts(StreamLoader(parted(4), 5)))
    with pytest.raises(ValueError, match=r'shuffled without a seed.*use shuffle\(seed'):
        next(in_parts(StreamLoader(parted(4, None), 4)))
    assert not is_hf_stream(DataLoader(Numbers()))
    assert is_hf_stream(DataLoader(parted(4)))


def test_streams_that_cannot_be_divided_evenly_or_differ_are_refused(): run_ranks(refused, 2)
