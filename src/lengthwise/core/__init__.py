"""The frame that all rooms know: seams, stacks, attachment, attention step, store, ledger. No method lives here."""
