"""One strategy a file; the file name is the name."""
