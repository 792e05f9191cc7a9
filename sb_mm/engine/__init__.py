"""What the tools do: configs, checks before a run, training, testing."""
