"Mixed precision, Accelerate, memory layout, compilation, graphs, accumulation, by the names that notebooks import."
from miniai.callbacks.accelerate import AccelerateCB as AccelerateCB
from miniai.callbacks.accumulate import AccumulateCB as AccumulateCB
from miniai.callbacks.compile import CompileCB as CompileCB
from miniai.callbacks.graph import GraphCB as GraphCB
from miniai.callbacks.layout import ChannelsLastCB as ChannelsLastCB
from miniai.callbacks.precision import MixedPrecision as MixedPrecision

__all__ = ['MixedPrecision', 'AccelerateCB', 'ChannelsLastCB', 'CompileCB', 'GraphCB', 'AccumulateCB']
