"""TivTok: a reuse-aware video tokenizer (arXiv 2606.17590) on scope-induced attention kernels."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tivtok.model.config import TivTokConfig
    from tivtok.tokenizer import TivTok
    from tivtok.tokens import Tokens

__all__ = ["TivTok", "TivTokConfig", "Tokens"]

_MODULES = {"TivTok": "tivtok.tokenizer", "TivTokConfig": "tivtok.model.config", "Tokens": "tivtok.tokens"}


def __getattr__(name: str) -> object:
    """Imported on first use: `tivtok.attention` comes without the tokenizer, the command line's help without torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
