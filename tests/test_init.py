"Initialization, by the names that notebooks import."
from reexports import check_reexports


def test_the_names_are_those_of_the_library():
    check_reexports('init', {
        'models.layers': 'GeneralRelu conv=conv_block', 'models.init': 'init_weights lsuv_init',
        'models.convnet': 'get_model', 'show.plots': 'plot_func', 'callbacks.batch': 'BatchTransformCB',
        'environment': 'clean_mem clean_tb clean_ipython_hist'})
