"Models, initialization and memory cleaning, by the names that notebooks import."
from miniai.callbacks.batch import BatchTransformCB as BatchTransformCB
from miniai.environment import clean_ipython_hist as clean_ipython_hist
from miniai.environment import clean_mem as clean_mem
from miniai.environment import clean_tb as clean_tb
from miniai.models.convnet import get_model as get_model
from miniai.models.init import init_weights as init_weights
from miniai.models.init import lsuv_init as lsuv_init
from miniai.models.layers import GeneralRelu as GeneralRelu
from miniai.models.layers import conv_block as conv
from miniai.show.plots import plot_func as plot_func

__all__ = ['GeneralRelu', 'plot_func', 'init_weights', 'lsuv_init', 'conv', 'get_model', 'BatchTransformCB',
           'clean_mem', 'clean_tb', 'clean_ipython_hist']
