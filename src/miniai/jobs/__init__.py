"Whole jobs, as the command line runs them: a configuration in, a run folder out."
