"""Random layouts cut into units of any size, for tests of the CPU engine."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import strategies as st

from tivtok_kernels.cpu import backend, plan


@contextmanager
def in_units(pairs: int, most_rows: int) -> Iterator[None]:
    """Plans of units with so many pairs of rows and keys, and rows, at most."""
    with pytest.MonkeyPatch.context() as constants:
        constants.setattr(plan, "PAIRS_PER_UNIT", pairs)
        constants.setattr(backend, "make_plan", lambda layout, scope, rows: plan.make_plan(layout, scope, most_rows))
        plan.make_plan.cache_clear()
        yield
    plan.make_plan.cache_clear()


# Arguments of `in_units`.
UNITS = {"pairs": st.sampled_from([1, 500, 1 << 17]), "most_rows": st.sampled_from([7, 40, 576])}
