"Plots, and the terminal, notebook and log displays."
