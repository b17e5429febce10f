"Data: loaders, batches from memory, and Fashion-MNIST."
from .fmnist import ImageSet as ImageSet
from .fmnist import fashion_mnist as fashion_mnist
from .fmnist import image_loaders as image_loaders
from .loaders import DataLoaders as DataLoaders
from .loaders import Dataset as Dataset
from .loaders import collate_dict as collate_dict
from .loaders import get_dls as get_dls
from .loaders import inplace as inplace
from .memory import MemoryLoader as MemoryLoader
from .seeded import SeededSamples as SeededSamples

__all__ = ['fashion_mnist', 'ImageSet', 'DataLoaders', 'Dataset', 'collate_dict', 'get_dls', 'inplace',
           'MemoryLoader', 'SeededSamples', 'image_loaders']
