"Activation statistics, by the names that notebooks import."
from reexports import check_reexports


def test_the_names_are_those_of_the_library():
    check_reexports('activations', {
        'randomness': 'set_seed', 'diagnosis.hooks': 'Hook Hooks',
        'diagnosis.activations': 'HooksCallback append_stats get_hist get_min ActivationStats'})
