"""`python -m benchmarks.gpu_report DIR`: what benchmarks.gpu_check left, as files of the repository."""
