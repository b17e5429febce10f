"Proof that runs can be resumed, by the names that user code imports."
from miniai.resume.prove import Proof as Proof
from miniai.resume.prove import ProofError as ProofError
from miniai.resume.prove import prove_learner as prove_learner

__all__ = ['prove_learner', 'Proof', 'ProofError']
