"""Tokens: what a video becomes, in memory, in files and in data sets."""

from tivtok.tokens.collector import TokenCollector
from tivtok.tokens.format import Counts, TokensError
from tivtok.tokens.statistics import LatentStats
from tivtok.tokens.tokens import Tokens

__all__ = ["Counts", "LatentStats", "TokenCollector", "Tokens", "TokensError"]
