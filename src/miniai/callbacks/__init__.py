"Callbacks: one family a file. They hear the events of a Learner and may change anything; none of them knows the loop."
