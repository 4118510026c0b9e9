"""Decoding that changes how tokens come about: drafted by a smaller model, or by workers that share one cache."""
