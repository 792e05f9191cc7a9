"""What the tools do: configs, checks before a run, training, testing."""

import os

# Before PyTorch, which loads the OpenMP library that reads it. By default a
# thread that waits for the others spins for so long that, on a CPU which other
# processes use too, it keeps them from the work that it waits for: a training
# step then took 1.8 times as long as with this, on an idle CPU as long.
os.environ.setdefault('GOMP_SPINCOUNT', '10000')
