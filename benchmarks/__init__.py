"""How fast sb_mm is, beside the parts of others that it replaces."""
