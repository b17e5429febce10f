"Callbacks around the optimizer's step: schedules, weight averages, closures."
