"Looking at training: activation statistics, model summary, profile, verdicts."
