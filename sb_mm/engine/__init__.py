"""What the tools do: configs, checks before a run, training, testing."""

import os

# Before PyTorch, which loads the OpenMP library that reads it. By default a
# thread that waits for the others spins for so long that, on a CPU which other
# processes use too, it keeps them from the work that it waits for.
os.environ.setdefault('GOMP_SPINCOUNT', '10000')
