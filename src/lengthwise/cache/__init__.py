"""What stays, in which form and where: one file per method."""
