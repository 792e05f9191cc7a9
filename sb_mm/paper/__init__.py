"""The paper's ten tables: each cell's config, size, cost and result."""
