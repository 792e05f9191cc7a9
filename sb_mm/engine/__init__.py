"""What the tools do: configs, checks before a run, training, testing."""

import os

# Before PyTorch, which loads the OpenMP library that reads it: on a CPU that
# other processes use too, threads that spin while they wait stall each other.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
