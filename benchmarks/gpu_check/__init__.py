"""What has to be seen on a GPU, in 20 minutes and one file: ``python -m benchmarks.gpu_check OUT.json``."""
