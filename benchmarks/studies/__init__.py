"""Measurements behind decisions, each one command that writes its numbers and a picture."""
