"Kernels: a traced rule as machine code, and sums and histograms in one pass over memory."
