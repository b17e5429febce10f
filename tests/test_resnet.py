"Residual networks, by the names that notebooks import."
from reexports import check_reexports


def test_the_names_are_those_of_the_library():
    check_reexports('resnet', {'models.layers': 'act_gr', 'models.resnet': 'ResBlock get_resnet'})
