"""Chunks of a long video: where they end, and which of them share a TIV set (paper Sec. 3.5)."""
