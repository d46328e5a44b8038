"""Benchmarks of the operators and layers: `python -m benchmarks.run --help`, from the root of the repository."""

import os

# The profiler, which measures memory here, writes two lines to stderr each time it starts; read when torch is imported.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
