"Optimizers, schedules and recorders, by the names that notebooks import."
from reexports import check_reexports


def test_the_names_are_those_of_the_library():
    check_reexports('sgd', {
        'steps.schedule': 'BaseSchedCB BatchSchedCB EpochSchedCB', 'callbacks.record': 'HasLearnCB RecorderCB',
        'optim.classes': 'SGD Momentum RMSProp Adam', 'optim.schedules': 'plot_schedule'})
