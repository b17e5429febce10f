"Metrics of an epoch: what batches weigh in their means, and fits that stop by them."
