"""How long a model thinks, set in its weights: merging, the CoT-Valve direction, ThinkEdit (module `think_edit`)."""

from lengthwise.thinking.weights.delta import Delta, between, edited, load, replaced, save
from lengthwise.thinking.weights.merge import dare_ties, linear
from lengthwise.thinking.weights.valve import Example, Recipe, betas, train

__all__ = [
    "Delta",
    "Example",
    "Recipe",
    "betas",
    "between",
    "dare_ties",
    "edited",
    "linear",
    "load",
    "replaced",
    "save",
    "train",
]
