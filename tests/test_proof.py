"Proof that runs can be resumed, by the names that user code imports."
from reexports import check_reexports


def test_the_names_are_those_of_the_library():
    check_reexports('proof', {'resume.prove': 'prove_learner Proof ProofError'})
