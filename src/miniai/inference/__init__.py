"Using a trained model: evaluate it, predict with it, save it, export it, look at its results."
