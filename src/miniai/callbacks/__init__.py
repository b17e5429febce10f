"Callbacks, one family per file. They are called at a Learner's events and may change anything; none imports the loop."
