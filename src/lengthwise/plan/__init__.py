"""What a length will cost on this machine, before it is spent."""
