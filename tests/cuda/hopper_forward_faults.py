"""Faults that the emulated tests of the Hopper forward must catch: small changes of its source, each with its case."""

from __future__ import annotations

from typing import NamedTuple

from cuda_emulator import Mutation


class Fault(NamedTuple):
    mutation: Mutation
    case: str


def _fault(file: str, name: str, old: str, new: str, case: str = "clips") -> Fault:
    return Fault(Mutation(name, f"forward/hopper/{file}", old, new), case)


_KEY_EMPTY = "dev::mbar_wait(shared.key_empty(ring.slot), ring.phase ^ 1);"
_VALUE_EMPTY = "dev::mbar_wait(shared.value_empty(ring.slot), ring.phase ^ 1);"
_LOAD = "dev::tma_load_4d(destination + i * panel_bytes, map, full, i * kPanelColumns, head, kBox - rows, row + rows);"
_WAIT_KEY = "dev::mbar_wait(shared.key_full(s.pair), s.phase);"
_FIRST_DONE = "dev::wgmma_wait<0>();\n    dev::wgmma_hold(scores);"
_SCORES_DONE = "dev::wgmma_wait<1>();\n        dev::wgmma_hold(scores);"
_OUTPUT_DONE = "dev::wgmma_wait<0>();\n        dev::wgmma_hold(out);"

# fmt: off
_BARRIERS = [
    _fault("kernel.h", "barriers without their fence", "dev::fence_mbar_init();", ""),
    _fault("kernel.h", "no block barrier behind the initialisation", "__syncthreads();", ""),
    _fault("kernel.h", "half of the warps empty a key tile",
           "dev::mbar_init(shared.key_empty(i), kSigners);", "dev::mbar_init(shared.key_empty(i), kSigners / 2);"),
    _fault("kernel.h", "a second signature of values awaited",
           "dev::mbar_init(shared.value_full(i), 1);", "dev::mbar_init(shared.value_full(i), 2);"),
]

_TMA = [
    _fault("producer.h", "queries of one warpgroup expected",
           "C::kConsumers * Shared<C>::kQueryTile", "Shared<C>::kQueryTile"),
    _fault("producer.h", "second warpgroup's queries a row too far", "group * kGroupRows", "group * (kGroupRows + 1)"),
    _fault("producer.h", "queries overwritten while in use",
           "dev::mbar_wait(shared.query_empty(queries.slot), queries.phase ^ 1);", ""),
    _fault("producer.h", "keys overwritten while in use", _KEY_EMPTY, ""),
    _fault("producer.h", "values overwritten while in use", _VALUE_EMPTY, ""),
    _fault("producer.h", "twice the bytes expected",
           "dev::mbar_arrive_expect_tx(full, Shared<C>::kKeyTile);",
           "dev::mbar_arrive_expect_tx(full, 2 * Shared<C>::kKeyTile);"),
    _fault("producer.h", "whole tiles of range B for those of A", "(box.in_a ? range_a : range_b).tile", "range_b.tile",
           "broadcast"),
    _fault("producer.h", "boxes of range B for those of A", "(box.in_a ? range_a : range_b).box", "range_b.box",
           "broadcast"),
    _fault("producer.h", "boxes past the end of their range", _LOAD,
           _LOAD.replace("kBox - rows, row + rows", "0, row + kBox"), "neighbours"),
    _fault("producer.h", "boxes that end a row late", _LOAD,
           _LOAD.replace("kBox - rows, row + rows", "kBox - rows - 1, row + rows + 1")),
    _fault("producer.h", "boxes loaded that a step has not", "b < boxes", "true", "whole neighbours"),
    _fault("producer.h", "a whole tile where a step has fewer boxes", "boxes == Plan<C>::kBoxes && plan.is_tile(i)",
           "plan.is_tile(i)", "whole neighbours"),
]

_STEPS = [
    _fault("steps.h", "end of range A a row too early", "tile.a_end - end_a", "tile.a_end - end_a - 1"),
    _fault("steps.h", "end of range B a row too early", "tile.b_end - end_b", "tile.b_end - end_b - 1"),
    _fault("steps.h", "whole boxes of range B a row too far",
           "tile.b + i_b * C::kBoxRows", "tile.b + i_b * C::kBoxRows + 1"),
    _fault("steps.h", "a step over both ranges taken for one of a range", "(i_b >= 0 || i_b + kBoxes <= 0)", "true",
           "broadcast"),
    _fault("steps.h", "the last step forgotten", "(boxes() + kBoxes - 1) / kBoxes", "boxes() / kBoxes"),
    _fault("consumer.h", "keys of step 0 not hidden",
           "box >= item.first_boxes ? 0 : box < 2 ? item.rows[box] : C::kBoxRows", "C::kBoxRows"),
    _fault("consumer.h", "boxes that step 0 has not are not hidden", "box >= item.first_boxes", "false"),
    _fault("consumer.h", "one key too many in step 0", "i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2 >= rows",
           "i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2 > rows", "low scores"),
    _fault("consumer.h", "keys of step 1 not hidden", "hide_keys<C>(scores, 0, steps.item.rows[1]);", "", "step 1"),
]

_PRODUCTS = [
    _fault("consumer.h", "keys read before they are there", _WAIT_KEY, ""),
    _fault("consumer.h", "values read before they are there",
           "dev::mbar_wait(shared.value_full(s.pair), s.phase);", ""),
    _fault("consumer.h", "keys of step 0 signed off while in use",
           _FIRST_DONE + "\n    steps.release_key(now);", "steps.release_key(now);\n" + _FIRST_DONE),
    _fault("consumer.h", "scores read in flight", _SCORES_DONE, ""),
    _fault("consumer.h", "weights overwritten in flight",
           "steps.wait_value(next);",
           "dev::pack_operand<typename C::Element>(weights, scores); steps.wait_value(next);"),
    _fault("consumer.h", "values signed off while in use",
           _OUTPUT_DONE + "\n        steps.release_value(now);", "steps.release_value(now);\n" + _OUTPUT_DONE),
    _fault("consumer.h", "outputs scaled in flight", _OUTPUT_DONE, ""),
    _fault("consumer.h", "queries signed off too early",
           "if (j == n - 1) release(query_empty);", "if (j == 1) release(query_empty);"),
    _fault("consumer.h", "half a column block further in q and k", "i % 4 * 32", "i % 4 * 16"),
    _fault("consumer.h", "values 8 rows further instead of 16", "i * 16 * kPanelRowBytes", "i * 8 * kPanelRowBytes"),
    _fault("consumer.h", "no first turn", "if (group == C::kConsumers - 1) turns.pass();", ""),
    _fault("consumer.h", "item signed off by one lane for all", "__syncwarp();", "", "neighbours"),
    _fault("consumer.h", "negated queries without a proxy fence", "dev::fence_proxy_async();", "", "negative scale"),
    _fault("consumer.h", "sign of every other query kept", "x.w ^ 0x80008000u", "x.w ^ 0x8000u", "negative scale"),
]

_RESULTS = [
    _fault("softmax.h", "old sums not scaled", "sum[r] *= decay[r];", ""),
    _fault("softmax.h", "maximum of two threads instead of four", "fmaxf(x, dev::shfl_xor(x, 2))", "x"),
    _fault("consumer.h", "outputs of both rows scaled as one", "out[i] *= decay[i / 2 % 2];", "out[i] *= decay[0];"),
    _fault("consumer.h", "a row behind the tile written", "row < item.row_end", "row <= item.row_end"),
    _fault("consumer.h", "LSE in base 2", "lse * dev::kLn2", "lse"),
    _fault("consumer.h", "pieces written to the slot of another head",
           "static_cast<int64_t>(item.slot) * p.heads + item.head", "static_cast<int64_t>(item.slot) * p.heads",
           "pieces"),
    _fault("consumer.h", "chunks of a quad in the wrong order", "p_out + 8 * (c + t)", "p_out + 8 * (c + (t ^ 1))"),
]
# fmt: on

FAULTS = _BARRIERS + _TMA + _STEPS + _PRODUCTS + _RESULTS
