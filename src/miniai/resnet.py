"Residual networks, by the names that notebooks import."
from miniai.models.layers import act_gr as act_gr
from miniai.models.resnet import ResBlock as ResBlock
from miniai.models.resnet import get_resnet as get_resnet

__all__ = ['act_gr', 'ResBlock', 'get_resnet']
