"""Studies: data sets with splits, the paper's example, comparisons on real data, networks, pictures."""
