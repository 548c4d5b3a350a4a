"""A generator on TivTok's tokens, small enough for one core: `python -m examples.generate` from a checkout."""
