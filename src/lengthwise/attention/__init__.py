"""Which keys a query sees: one file per method."""
