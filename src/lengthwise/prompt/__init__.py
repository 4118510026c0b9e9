"""What of the input is put before the model: one file per method."""
