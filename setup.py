"""Metadata is in pyproject.toml. The CUDA extension will be built here; there is none yet."""

from setuptools import setup

setup()
