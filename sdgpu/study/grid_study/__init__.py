"""Studies: a TOML file of data, kernels, methods and seeds, its cells, their results as one dataset."""
