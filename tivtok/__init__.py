"""TivTok: a reuse-aware video tokenizer (arXiv 2606.17590) on scope-induced attention kernels."""

from tivtok.config import TivTokConfig
from tivtok.model import TivTok
from tivtok.tokens import Tokens

__all__ = ["TivTok", "TivTokConfig", "Tokens"]
