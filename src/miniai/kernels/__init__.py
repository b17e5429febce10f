"Kernels: a traced rule as machine code, a file per backend, and sums and histograms in one pass over memory."
