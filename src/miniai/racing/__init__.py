"Races: update rules compared fairly on a ladder of tasks, with a verdict, which may be that nothing can be told."
