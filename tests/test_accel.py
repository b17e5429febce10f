"Faster computation, by the names that notebooks import."
from reexports import check_reexports


def test_the_names_are_those_of_the_library():
    check_reexports('accel', {
        'callbacks.precision': 'MixedPrecision', 'callbacks.accelerate': 'AccelerateCB',
        'callbacks.layout': 'ChannelsLastCB', 'callbacks.compile': 'CompileCB', 'callbacks.graph': 'GraphCB',
        'callbacks.accumulate': 'AccumulateCB'})
