"Data: loaders, batches from memory, and Fashion-MNIST."
from miniai.data.fmnist import ImageSet as ImageSet
from miniai.data.fmnist import fashion_mnist as fashion_mnist
from miniai.data.fmnist import image_loaders as image_loaders
from miniai.data.loaders import DataLoaders as DataLoaders
from miniai.data.loaders import Dataset as Dataset
from miniai.data.loaders import collate_dict as collate_dict
from miniai.data.loaders import get_dls as get_dls
from miniai.data.loaders import inplace as inplace
from miniai.data.memory import MemoryLoader as MemoryLoader
from miniai.data.seeded import SeededSamples as SeededSamples

__all__ = ['fashion_mnist', 'ImageSet', 'DataLoaders', 'Dataset', 'collate_dict', 'get_dls', 'inplace',
           'MemoryLoader', 'SeededSamples', 'image_loaders']
