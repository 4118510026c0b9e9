"""Ready-to-run models: names to (model, tokenizer), with download, verification and conversion."""

from lengthwise.models._errors import ModelError
from lengthwise.models._load import Source, fingerprint, load, resolve
from lengthwise.models._packaged import PACKAGED, Packaged, download, is_ready, verify
from lengthwise.models._paths import cache_dir

__all__ = [
    "PACKAGED",
    "ModelError",
    "Packaged",
    "Source",
    "cache_dir",
    "download",
    "fingerprint",
    "is_ready",
    "load",
    "resolve",
    "verify",
]
