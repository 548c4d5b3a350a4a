// What the 128 threads of a warpgroup do together: wgmma and setmaxnreg. An accumulator is poisoned from issue to the
// wait that covers it; its values are computed at that wait, from shared memory as it is then.
#include <algorithm>
#include <cstring>

#include "state.h"
#include "tensor_map.h"

namespace emu {

namespace {

constexpr uint32_t kPoison = 0xffffffffu;

// Calls execute(warpgroup) once all 128 threads are here.
template <class Execute>
void meet(Collective kind, void* argument, void* pc, Execute execute) {
    const int thread = block.current, first = thread / 128 * 128;
    if (first + 128 > block.num_threads) {
        report("divergence", pc, "%s outside a full warpgroup", name(kind));
        abandon();
    }
    Warpgroup& group = block.warpgroup();
    if (group.arrived && group.kind != kind) {
        report("divergence", pc, "thread %d is at %s while others of its warpgroup are at %s", thread, name(kind),
               name(group.kind));
        abandon();
    }
    group.kind = kind;
    group.argument[thread % 128] = argument;
    if (++group.arrived < 128) return sleep(name(kind), pc);
    group.arrived = 0;
    execute(group);
    for (int i = 0; i < 128; ++i) wake(first + i);
}

// An operand in shared memory, as its 64-bit descriptor says (PTX ISA, "matrix descriptor", and CuTe's canonical
// layouts).
struct Operand {
    uint32_t start, lead, stride, swizzle;
    bool is_mn;

    Operand(uint64_t descriptor, bool is_mn)
        : start((descriptor & 0x3fff) << 4),
          lead((descriptor >> 16 & 0x3fff) << 4),
          stride((descriptor >> 32 & 0x3fff) << 4),
          swizzle(descriptor >> 62 == 0 ? 0 : 256 >> (descriptor >> 62)),
          is_mn(is_mn) {}

    // The shared address of element (i, k), i the row of A or the column of B.
    uint32_t address(int i, int k) const {
        uint32_t a = start;
        if (!is_mn && swizzle) {
            a += i / 8 * stride + i % 8 * swizzle + k * 2;
        } else if (!is_mn) {
            a += i / 8 * stride + i % 8 * 16 + k / 8 * lead + k % 8 * 2;
        } else if (swizzle) {
            const int columns = swizzle / 2;
            a += i / columns * lead + i % columns * 2 + k / 8 * stride + k % 8 * swizzle;
        } else {
            a += i / 8 * stride + i % 8 * 2 + k / 8 * lead + k % 8 * 16;
        }
        return a ^ (a >> 7 & swizzle_mask()) << 4;
    }

    // Of the address bits from 7 on, those that count the lines of a swizzle group.
    uint32_t swizzle_mask() const { return swizzle == 128 ? 7 : swizzle == 64 ? 3 : swizzle == 32 ? 1 : 0; }

    float element(int i, int k, bool is_bf16) const {
        const uint32_t offset = address(i, k) - kSharedBase;
        uint16_t bits = 0xffff;
        if (offset + 2 <= block.shared_bytes) memcpy(&bits, block.shared + offset, 2);
        return is_bf16 ? from_bf16(bits) : from_fp16(bits);
    }
};

// Checks that an operand of n rows or columns may be read by what all threads of the warpgroup know.
void check_operand(const Operand& operand, int n, int warpgroup, Epoch epoch, const Knowledge& known, void* pc) {
    if (!operand.is_mn && operand.start >> 7 & operand.swizzle_mask()) {
        report("wgmma", pc,
               "the operand at shared address %u does not start on an 8-row group of its swizzle (base offset 0)",
               operand.start);
    }
    const Access access{uint32_t(block.wgmma_agent(warpgroup)), known, true, pc, "wgmma"};
    uint32_t first = UINT32_MAX, last = 0;
    for (int i = 0; i < n; i += operand.is_mn ? 8 : 1) {
        for (int k = 0; k < 16; k += operand.is_mn ? 1 : 8) {
            const uint32_t offset = operand.address(i, k) - kSharedBase;
            if (!inside_shared(offset, 16, pc, "wgmma operand")) return;
            check_shared_read(offset, 16, access, block.num_warps + warpgroup, epoch);
            first = std::min(first, offset), last = std::max(last, offset + 16);
        }
    }
    record_of(warpgroup * 128, kRead, 0, 0, first, last);
}

Knowledge known_to_all(int first_thread) {
    Knowledge common = block.threads[first_thread].known;
    for (int t = first_thread + 1; t < first_thread + 128; ++t) {
        const Knowledge& known = block.threads[t].known;
        for (int i = 0; i < block.num_agents; ++i) {
            common.all[i] = std::min(common.all[i], known.all[i]);
            common.fenced[i] = std::min(common.fenced[i], known.fenced[i]);
        }
    }
    return common;
}

int accumulator_row(int thread, int i) { return thread / 32 * 16 + thread % 32 / 4 + 8 * (i / 2 % 2); }
int accumulator_column(int thread, int i) { return i / 4 * 8 + thread % 4 * 2 + i % 2; }

void compute(const WgmmaOp& op, std::vector<float>& values) {
    static float a[64][16], b[16][256], d[64][256];
    const Operand operand_a(op.desc_a, op.a_is_mn), operand_b(op.desc_b, op.b_is_mn);
    const int count = op.n / 2;
    for (int t = 0; t < 128; ++t) {
        for (int i = 0; i < count; ++i) {
            d[accumulator_row(t, i)][accumulator_column(t, i)] = op.accumulate ? values[t * count + i] : 0.f;
        }
        if (!op.a_in_registers) continue;
        for (int i = 0; i < 4; ++i) {
            for (int half = 0; half < 2; ++half) {
                const uint16_t bits = op.a[t][i] >> (16 * half);
                a[t / 32 * 16 + t % 32 / 4 + i % 2 * 8][t % 4 * 2 + half + i / 2 * 8] =
                    op.is_bf16 ? from_bf16(bits) : from_fp16(bits);
            }
        }
    }
    for (int k = 0; k < 16; ++k) {
        if (!op.a_in_registers) {
            for (int m = 0; m < 64; ++m) a[m][k] = operand_a.element(m, k, op.is_bf16);
        }
        for (int n = 0; n < op.n; ++n) b[k][n] = operand_b.element(n, k, op.is_bf16);
    }
    for (int m = 0; m < 64; ++m) {
        for (int k = 0; k < 16; ++k) {
            for (int n = 0; n < op.n; ++n) d[m][n] += a[m][k] * b[k][n];
        }
    }
    for (int t = 0; t < 128; ++t) {
        for (int i = 0; i < count; ++i) values[t * count + i] = d[accumulator_row(t, i)][accumulator_column(t, i)];
    }
}

bool in_use(const Warpgroup& group, const float* accumulator) {
    auto uses = [&](const WgmmaOp& op) { return op.d[0] == accumulator; };
    return std::any_of(group.open.begin(), group.open.end(), uses) ||
           std::any_of(group.groups.begin(), group.groups.end(),
                       [&](const auto& ops) { return std::any_of(ops.begin(), ops.end(), uses); });
}

void take_accumulator(Warpgroup& group, const WgmmaOp& op) {
    Accumulator& acc = group.in_flight[op.d[0]];
    acc.count = op.n / 2;
    acc.values.resize(128 * acc.count);
    for (int t = 0; t < 128; ++t) {
        acc.registers[t] = op.d[t];
        memcpy(&acc.values[t * acc.count], op.d[t], 4 * acc.count);
        std::fill_n(reinterpret_cast<uint32_t*>(op.d[t]), acc.count, kPoison);
    }
}

void give_back(const Accumulator& acc, void* pc) {
    bool modified = false;
    for (int t = 0; t < 128; ++t) {
        for (int i = 0; i < acc.count; ++i) modified |= __float_as_uint(acc.registers[t][i]) != kPoison;
        memcpy(acc.registers[t], &acc.values[t * acc.count], 4 * acc.count);
    }
    if (modified) report("wgmma", pc, "an accumulator was written while this wgmma was in flight");
}

void retire(Warpgroup& group, size_t pending) {
    while (group.groups.size() > pending) {
        const std::vector<WgmmaOp> ops = std::move(group.groups.front());
        group.groups.pop_front();
        for (const WgmmaOp& op : ops) {
            if (!op.computed) compute(op, group.in_flight[op.d[0]].values);
            group.retired = op.epoch;
        }
        for (const WgmmaOp& op : ops) {
            auto it = group.in_flight.find(op.d[0]);
            if (it == group.in_flight.end() || in_use(group, op.d[0])) continue;
            give_back(it->second, op.pc);
            group.in_flight.erase(it);
        }
    }
}

// Registers of thread t that this operation reads or writes must not have been written since the thread's wgmma.fence.
void check_fence(const Warpgroup& group, const WgmmaOp& op, int t) {
    if (!group.fenced) {
        report("wgmma", op.pc, "wgmma without a wgmma.fence since its registers were last released");
    } else if ((!group.in_flight.contains(op.d[0]) &&
                written_since_fence(block.warpgroup_start() + t, op.d[t], 2 * op.n)) ||
               (op.a_in_registers && written_since_fence(block.warpgroup_start() + t, op.a_registers[t], 16))) {
        report("wgmma", op.pc, "registers of this wgmma were written after the last wgmma.fence");
    }
}

struct WgmmaArgument {
    float* d;
    int n;
    const uint32_t* a;
    uint64_t desc_a, desc_b;
    bool accumulate;
};

void issue(Warpgroup& group, WgmmaOp& op) {
    const int first = block.warpgroup_start(), index = first / 128;
    op.epoch = ++group.issued;
    ++counters.wgmma;
    for (int t = 0; t < 128; ++t) {
        const WgmmaArgument& x = *static_cast<WgmmaArgument*>(group.argument[t]);
        if (x.n != op.n || x.desc_a != op.desc_a || x.desc_b != op.desc_b || x.accumulate != op.accumulate) {
            report("wgmma", op.pc,
                   "thread %d has another shape, descriptor or accumulate flag than others of its warpgroup",
                   first + t);
        }
        op.d[t] = x.d, op.a_registers[t] = x.a;
        if (op.a_in_registers) memcpy(op.a[t], x.a, 16);
    }
    if (!block.eager_wgmma) {
        for (int t = 0; t < 128; ++t) check_fence(group, op, t);
    }
    const Knowledge known = known_to_all(first);
    if (!op.a_in_registers) check_operand(Operand(op.desc_a, op.a_is_mn), 64, index, op.epoch, known, op.pc);
    check_operand(Operand(op.desc_b, op.b_is_mn), op.n, index, op.epoch, known, op.pc);
    if (!group.in_flight.contains(op.d[0])) take_accumulator(group, op);
    if (group.in_flight[op.d[0]].count != op.n / 2) {
        report("wgmma", op.pc, "accumulator of %d registers, in flight with %d", op.n / 2,
               group.in_flight[op.d[0]].count);
        abandon();
    }
    if (block.eager_wgmma) {
        compute(op, group.in_flight[op.d[0]].values);
        give_back(group.in_flight[op.d[0]], op.pc);
        group.in_flight.erase(op.d[0]);
        op.computed = true;
    }
    group.open.push_back(op);
}

bool overlaps(const void* p, uint32_t bytes, const void* registers, uint32_t size) {
    const auto *a = static_cast<const uint8_t*>(p), *b = static_cast<const uint8_t*>(registers);
    return a + bytes > b && a < b + size;
}

}  // namespace

void check_register(const void* p, uint32_t bytes, bool write, void* pc) {
    const Warpgroup& group = block.warpgroup();
    const int t = block.current % 128;
    for (const auto& [key, acc] : group.in_flight) {
        if (overlaps(p, bytes, acc.registers[t], 4 * acc.count)) {
            return report("wgmma", pc, "an accumulator is %s while wgmma is in flight", write ? "written" : "read");
        }
    }
    if (!write) return;
    auto check_a = [&](const WgmmaOp& op) {
        if (op.a_in_registers && !op.computed && overlaps(p, bytes, op.a_registers[t], 16)) {
            report("wgmma", pc, "an A register is written while the wgmma that reads it is in flight");
        }
    };
    for (const auto& ops : group.groups) std::for_each(ops.begin(), ops.end(), check_a);
    std::for_each(group.open.begin(), group.open.end(), check_a);
}

void wgmma(float* d, int n, const uint32_t* a, uint64_t desc_a, uint64_t desc_b, bool accumulate, bool is_bf16,
           bool a_is_mn, bool b_is_mn) {
    void* pc = CALLER;
    WgmmaArgument argument{d, n, a, desc_a, desc_b, accumulate};
    meet(Collective::wgmma, &argument, pc, [&](Warpgroup& group) {
        WgmmaOp op;
        op.n = n, op.desc_a = desc_a, op.desc_b = desc_b, op.accumulate = accumulate, op.is_bf16 = is_bf16;
        op.a_in_registers = a != nullptr, op.a_is_mn = a_is_mn, op.b_is_mn = b_is_mn, op.pc = pc;
        issue(group, op);
    });
}

void wgmma_wait(int pending) {
    const int first = block.warpgroup_start();
    meet(Collective::wgmma_wait, nullptr, CALLER, [&](Warpgroup& group) {
        record_of(first, kReadsWaited, 0, pending);
        retire(group, pending);
        group.fenced = false;
        for (int t = first; t < first + 128; ++t) {
            Epoch& known = block.threads[t].known.all[block.wgmma_agent(first / 128)];
            known = std::max(known, group.retired);
        }
    });
}

void set_max_registers(int count) {
    meet(Collective::setmaxnreg, nullptr, CALLER, [](Warpgroup&) {});
    if (count < 24 || count > 256 || count % 8)
        report("setmaxnreg", CALLER, "%d registers: not a multiple of 8 from 24 to 256", count);
}

}  // namespace emu

using namespace emu;

namespace dev {

void wgmma_fence() {
    meet(Collective::wgmma_fence, nullptr, CALLER, [](Warpgroup& group) {
        group.fenced = true;
        const int first = block.warpgroup_start();
        for (int t = first; t < first + 128; ++t) fence_registers(block.threads[t]);
    });
}

void wgmma_commit() {
    meet(Collective::wgmma_commit, nullptr, CALLER, [](Warpgroup& group) {
        record_of(block.warpgroup_start(), kReadsCommitted, 0, 0);
        group.groups.push_back(std::move(group.open));
        group.open.clear();
    });
}

}  // namespace dev
