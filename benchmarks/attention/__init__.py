"""Attention against its peers and the machine's ceiling."""
