"Data loaders and pictures of images, by the names that notebooks import."
from miniai.data.loaders import DataLoaders as DataLoaders
from miniai.data.loaders import collate_dict as collate_dict
from miniai.data.loaders import inplace as inplace
from miniai.show.plots import get_grid as get_grid
from miniai.show.plots import show_image as show_image
from miniai.show.plots import show_images as show_images
from miniai.show.plots import subplots as subplots

__all__ = ['inplace', 'collate_dict', 'DataLoaders', 'show_image', 'subplots', 'get_grid', 'show_images']
