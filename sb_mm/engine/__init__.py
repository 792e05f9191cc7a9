"""What the tools do: configs, checks, training, testing."""
