"""The structures of csrc as tests fill them."""

import ctypes

import pytest
import structures
from structures import Structure

HEADER = """// A comment.
struct Pair {
    const void* data;
    int64_t row, head;  // strides
};

struct Params : Base {
    Pair q, k;               // (N, H, D)
    const float *lse, *dlse; // (N, H)
    int rows;
    float scale = 0;  // of scores
};
"""


@pytest.fixture
def header(tmp_path, monkeypatch):
    monkeypatch.setattr(structures, "CSRC", tmp_path)
    path = tmp_path / "params.h"
    path.write_text(HEADER)
    return path


def test_fields_of_a_header(header):
    pair, params = structures.structures("params.h").values()
    assert pair._fields_ == [("data", ctypes.c_void_p), ("row", ctypes.c_int64), ("head", ctypes.c_int64)]
    assert [name for name, _ in params._fields_] == ["q", "k", "lse", "dlse", "rows", "scale"]
    assert [kind for _, kind in params._fields_] == [pair] * 2 + [ctypes.c_void_p] * 2 + [
        ctypes.c_int32,
        ctypes.c_float,
    ]
    assert ctypes.sizeof(params) == 2 * 24 + 2 * 8 + 4 + 4


def test_every_field_is_named(header):
    pair = structures.structures("params.h")["Pair"]
    made = pair(head=3, row=2, data=1)
    assert isinstance(made, Structure) and (made.data, made.row, made.head) == (1, 2, 3)
    for fields in ({"data": 1, "row": 2}, {"data": 1, "row": 2, "head": 3, "rows": 4}):
        with pytest.raises(TypeError, match=r"Pair takes \['data', 'head', 'row'\]"):
            pair(**fields)
    with pytest.raises(TypeError):
        pair(1, 2, 3)


@pytest.mark.parametrize("line", ["double x;", "int x[2];", "void launch();", "std::vector<int> x;"])
def test_what_it_cannot_read(header, line):
    header.write_text(HEADER.replace("int rows;", line))
    with pytest.raises(ValueError, match=r"csrc/params.h, Params: expected pointers, numbers or structures"):
        structures.structures("params.h")
