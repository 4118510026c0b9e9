"""Where a key stands: one file per method."""
