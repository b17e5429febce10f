"Checkpoints of a run: what is saved, compared and restored, when, and the proof that it works."
