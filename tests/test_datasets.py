"Data and plots, by the names that notebooks import."
from reexports import check_reexports


def test_the_names_are_those_of_the_library():
    check_reexports('datasets', {'data.loaders': 'inplace collate_dict DataLoaders',
                                 'show.plots': 'show_image subplots get_grid show_images'})
