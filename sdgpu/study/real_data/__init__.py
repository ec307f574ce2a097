"""Data sets that come with packages or files, split; those of the globe and of power at real size."""
