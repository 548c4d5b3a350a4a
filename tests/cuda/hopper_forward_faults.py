"""Faults that the emulated tests of the Hopper forward must catch: small changes of its source, each with its case."""

from __future__ import annotations

from typing import NamedTuple

from cuda_emulator import Mutation


class Fault(NamedTuple):
    mutation: Mutation
    case: str


def _fault(file: str, name: str, old: str, new: str, case: str = "clips") -> Fault:
    return Fault(Mutation(name, f"forward/hopper/{file}", old, new), case)


_KEY_EMPTY = "dev::mbar_wait(shared.key_empty(ring.slot), ring.phase ^ 1);\n"
_VALUE_EMPTY = "dev::mbar_wait(shared.value_empty(ring.slot), ring.phase ^ 1);\n"
_SIGN_KEYS = "dev::mbar_arrive(shared.key_full(ring.slot));"
_EXPECT_KEYS = "dev::mbar_arrive_expect_tx(key_full, Shared<C>::kKeyTile);"
_EXPECT_VALUES = "dev::mbar_arrive_expect_tx(value_full, Shared<C>::kKeyTile);"
_COPY_KEYS = "copy_rows(shared.key(ring.slot), f.k_tiv, f.k, plan, t);"
_SYNC_COPIES = "dev::bar_sync(kCopyBarrier, kCopyThreads);"
_SIGN_COPIES = "if (signs_copies()) dev::mbar_arrive(full);"
_PASS_OVER = "pass_over_slots(shared, ring, plan.full_a + plan.full_b, signs_copies());"
_WAIT_KEY = "dev::mbar_wait(shared.key_full(s.pair), s.phase);"
_FIRST_DONE = "dev::wgmma_wait<0>();\n    dev::wgmma_hold(scores);"
_SCORES_DONE = "dev::wgmma_wait<1>();\n        dev::wgmma_hold(scores);"
_OUTPUT_DONE = "dev::wgmma_wait<0>();\n        dev::wgmma_hold(out);"
_MAXIMUM = "max[i / 2 % 2] = fmaxf(max[i / 2 % 2], s[i]);"
_WEIGHT = "dev::ex2(s[i] * scale - shift[i / 2 % 2]) : 0.f;"
_IN_STEP_0 = "i / 4 * 8 + column + i % 2 < keys"
_IN_STEP_0_WRONG = "i / 4 * 8 + column + i % 2 <= keys"

# fmt: off
_BARRIERS = [
    _fault("kernel.h", "barriers without their fence", "dev::fence_mbar_init();", ""),
    _fault("kernel.h", "no block barrier behind the initialisation", "__syncthreads();", ""),
    _fault("kernel.h", "half of the warps empty a key tile",
           "dev::mbar_init(shared.key_empty(i), kSigners);", "dev::mbar_init(shared.key_empty(i), kSigners / 2);"),
    _fault("kernel.h", "a third loader of values awaited",
           "dev::mbar_init(shared.value_full(i), kLoaders);", "dev::mbar_init(shared.value_full(i), kLoaders + 1);"),
    _fault("kernel.h", "one loader of keys awaited",
           "dev::mbar_init(shared.key_full(i), kLoaders);", "dev::mbar_init(shared.key_full(i), 1);"),
]

_TMA = [
    _fault("producer.h", "queries of one warpgroup expected",
           "C::kConsumers * Shared<C>::kQueryTile", "Shared<C>::kQueryTile"),
    _fault("producer.h", "second warpgroup's queries a row too far", "group * kGroupRows", "group * (kGroupRows + 1)"),
    _fault("producer.h", "queries overwritten while in use",
           "dev::mbar_wait(shared.query_empty(queries.slot), queries.phase ^ 1);", ""),
    _fault("producer.h", "slots passed over before they are empty",
           _VALUE_EMPTY + "            " + _SIGN_KEYS, _SIGN_KEYS, "long items"),
    _fault("producer.h", "slots passed over without a signature", _SIGN_KEYS, "", "long items"),
    _fault("producer.h", "key tiles awaited in the wrong phase",
           _KEY_EMPTY + "        " + _EXPECT_KEYS, _KEY_EMPTY.replace(" ^ 1", "") + _EXPECT_KEYS),
    _fault("producer.h", "values overwritten while in use", _VALUE_EMPTY + "        " + _EXPECT_VALUES, _EXPECT_VALUES),
    _fault("producer.h", "twice the bytes expected for values",
           _EXPECT_VALUES, _EXPECT_VALUES.replace("Shared", "2 * Shared")),
    _fault("producer.h", "full tiles of range B a row too far",
           "plan.tile.b + (t - plan.full_a) * C::kBlockK", "plan.tile.b + (t - plan.full_a) * C::kBlockK + 1"),
    _fault("producer.h", "range B for range A", "in_a ? &p.k_tiv : &p.k", "&p.k", "broadcast"),
]

_COPIES = [
    _fault("producer.h", "rows behind the last key copied",
           "o_tail < plan.tail_a + plan.tail_b", "true", "neighbours"),
    _fault("producer.h", "tail of range A a row too early",
           "plan.tile.a_end - plan.tail_a + o_tail", "plan.tile.a_end - plan.tail_a + o_tail - 1"),
    _fault("producer.h", "tail of range B a row too early",
           "plan.tile.b_end - plan.tail_b + o_tail", "plan.tile.b_end - plan.tail_b + o_tail - 1"),
    _fault("producer.h", "wrong swizzle", "chunk % 8 ^ r % 8", "chunk % 8 ^ r % 4"),
    _fault("producer.h", "copies not waited for", "dev::cp_async_wait<kPending>();", ""),
    _fault("producer.h", "copies without a proxy fence", "dev::fence_proxy_async();", ""),
    _fault("producer.h", "one warp signs for copies of all", _SYNC_COPIES + "\n    " + _SIGN_COPIES, _SIGN_COPIES),
    _fault("producer.h", "copying warps apart from the one that signs",
           _PASS_OVER + "\n        " + _SYNC_COPIES, _PASS_OVER, "long items"),
    _fault("producer.h", "copies into keys in use", _KEY_EMPTY + "            " + _COPY_KEYS, _COPY_KEYS),
    _fault("producer.h", "keys signed off before they are copied",
           "publish_copies<1>(shared.key_full(ring.slot));", "publish_copies<2>(shared.key_full(ring.slot));"),
    _fault("steps.h", "the partial joined tile forgotten",
           "joined = (tail_a + tail_b + C::kBlockK - 1) / C::kBlockK;", "joined = (tail_a + tail_b) / C::kBlockK;"),
    _fault("steps.h", "one key too few in step 0",
           "tail_a + tail_b - (joined - 1) * C::kBlockK", "tail_a + tail_b - (joined - 1) * C::kBlockK - 1"),
]

_PRODUCTS = [
    _fault("consumer.h", "keys read before they are there", _WAIT_KEY, ""),
    _fault("consumer.h", "values read before they are there",
           "dev::mbar_wait(shared.value_full(s.pair), s.phase);", ""),
    _fault("consumer.h", "keys of step 0 signed off while in use",
           _FIRST_DONE + "\n    steps.release_key(now);", "steps.release_key(now);\n" + _FIRST_DONE),
    _fault("consumer.h", "scores read in flight", _SCORES_DONE, ""),
    _fault("consumer.h", "weights overwritten in flight",
           "softmax.next(scores, decay);",
           "softmax.next(scores, decay); dev::pack_operand<typename C::Element>(weights, scores);"),
    _fault("consumer.h", "values signed off while in use",
           _OUTPUT_DONE + "\n        steps.release_value(now);", "steps.release_value(now);\n" + _OUTPUT_DONE),
    _fault("consumer.h", "outputs scaled in flight", _OUTPUT_DONE, ""),
    _fault("consumer.h", "queries signed off too early",
           "if (j == n - 1) release(query_empty);", "if (j == 1) release(query_empty);"),
    _fault("consumer.h", "half a column block further in q and k", "i % 4 * 32", "i % 4 * 16"),
    _fault("consumer.h", "values 8 rows further instead of 16", "i * 16 * kPanelRowBytes", "i * 8 * kPanelRowBytes"),
    _fault("consumer.h", "no first turn", "if (consumer_group() == C::kConsumers - 1) Turns<C>().pass();", ""),
    _fault("consumer.h", "item signed off by one lane for all", "__syncwarp();", "", "neighbours"),
    _fault("consumer.h", "negated queries without a proxy fence", "dev::fence_proxy_async();", "", "negative scale"),
    _fault("consumer.h", "sign of every other query kept", "x.w ^ 0x80008000u", "x.w ^ 0x8000u", "negative scale"),
]

_RESULTS = [
    _fault("softmax.h", "one column too many in the maximum",
           f"if ({_IN_STEP_0}) {_MAXIMUM}", f"if ({_IN_STEP_0_WRONG}) {_MAXIMUM}", "low scores"),
    _fault("softmax.h", "one column too many in the sum",
           f"s[i] = {_IN_STEP_0} ? {_WEIGHT}", f"s[i] = {_IN_STEP_0_WRONG} ? {_WEIGHT}"),
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

FAULTS = _BARRIERS + _TMA + _COPIES + _PRODUCTS + _RESULTS
