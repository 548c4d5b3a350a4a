// What the 32 lanes of a warp do together. The last lane to arrive carries the operation out for all.
#include <algorithm>

#include "state.h"

namespace emu {

namespace {

constexpr uint32_t kWholeWarp = 0xffffffffu;

template <class Argument>
Argument& argument_of(Rendezvous& r, int lane) {
    return *static_cast<Argument*>(r.argument[lane]);
}

// Calls execute(rendezvous) once all lanes in `mask` are here.
template <class Execute>
void meet(Collective kind, uint32_t mask, void* argument, void* pc, Execute execute) {
    const int lane = block.current % 32;
    Warp& warp = block.warp();
    if (!(mask >> lane & 1)) {
        report("divergence", pc, "%s: lane %d is not in its own mask %08x", name(kind), lane, mask);
        abandon();
    }
    auto it = std::find_if(warp.rendezvous.begin(), warp.rendezvous.end(),
                           [&](const Rendezvous& r) { return r.mask & mask; });
    if (it == warp.rendezvous.end()) it = warp.rendezvous.insert(it, Rendezvous{.kind = kind, .mask = mask});
    Rendezvous& r = *it;
    if (r.kind != kind || r.mask != mask) {
        const int other = __builtin_ctz(r.arrived);
        report("divergence", pc, "lane %d is at %s (mask %08x) while lane %d is at %s (mask %08x) at %s", lane,
               name(kind), mask, other, name(r.kind), r.mask, location(r.pc[other]).c_str());
        abandon();
    }
    r.argument[lane] = argument, r.pc[lane] = pc, r.arrived |= 1u << lane;
    if ((r.arrived & warp.live) != (mask & warp.live)) return sleep(name(kind), pc);
    if (mask & ~warp.live)
        report("divergence", pc, "%s names lanes %08x, which have exited", name(kind), mask & ~warp.live);
    Rendezvous complete = r;
    warp.rendezvous.erase(it);
    execute(complete);
    warp.runnable |= complete.arrived;
}

template <class F>
void for_lanes(uint32_t mask, F f) {
    for (int lane = 0; lane < 32; ++lane) {
        if (mask >> lane & 1) f(lane);
    }
}

struct ShuffleArgument {
    uint32_t value, result;
    Shuffle mode;
    int argument;
};

int shuffle_source(const ShuffleArgument& a, int lane) {
    switch (a.mode) {
        case Shuffle::idx:
            return a.argument & 31;
        case Shuffle::bfly:
            return lane ^ a.argument;
        case Shuffle::up:
            return lane - a.argument;
        case Shuffle::down:
            return lane + a.argument;
    }
    return lane;
}

struct MatrixArgument {
    uint32_t* registers;
    uint32_t address;
    int count;
    bool transposed;
};

// Lane l holds elements (l / 4, 2 * (l % 4) + {0, 1}) of each 8 x 8 matrix, of its transpose if transposed.
struct Matrix {
    uint16_t rows[8][8];
    uint16_t& held(int lane, int half, bool transposed) {
        const int i = lane / 4, j = 2 * (lane % 4) + half;
        return transposed ? rows[j][i] : rows[i][j];
    }
};

void access_row(Matrix& matrix, int row, int thread, uint32_t address, bool load, void* pc) {
    const char* what = load ? "ldmatrix" : "stmatrix";
    if (load) std::fill_n(matrix.rows[row], 8, 0xffff);
    if (address % 16) return report("misaligned", pc, "%s row address %u is no multiple of 16", what, address);
    const uint32_t offset = address - kSharedBase;
    if (!inside_shared(offset, 16, pc, what)) return;
    if (load) {
        thread_reads_shared(offset, 16, thread, pc, what);
        memcpy(matrix.rows[row], block.shared + offset, 16);
    } else if (!is_repeated_store(block.shared + offset, matrix.rows[row], 16)) {
        thread_writes_shared(offset, 16, thread, pc, what);
        memcpy(block.shared + offset, matrix.rows[row], 16);
    }
}

void move_matrices(Rendezvous& r, bool load, void* pc) {
    const int first_thread = block.current / 32 * 32;
    const MatrixArgument shape = argument_of<MatrixArgument>(r, 0);
    ++counters.ldmatrix;
    for (int i = 0; i < shape.count; ++i) {
        Matrix matrix;
        if (!load) {
            for (int lane = 0; lane < 32; ++lane) {
                const uint32_t value = argument_of<MatrixArgument>(r, lane).registers[i];
                for (int half = 0; half < 2; ++half) matrix.held(lane, half, shape.transposed) = value >> (16 * half);
            }
        }
        int rows_in_bank[8] = {};
        for (int row = 0; row < 8; ++row) {
            const int lane = i * 8 + row;
            const uint32_t address = argument_of<MatrixArgument>(r, lane).address;
            access_row(matrix, row, first_thread + lane, address, load, pc);
            ++rows_in_bank[address / 16 % 8];
        }
        counters.ldmatrix_wavefronts += *std::max_element(rows_in_bank, rows_in_bank + 8);
        ++counters.ldmatrix_ideal;
        if (!load) continue;
        for (int lane = 0; lane < 32; ++lane) {
            argument_of<MatrixArgument>(r, lane).registers[i] =
                matrix.held(lane, 0, shape.transposed) | uint32_t(matrix.held(lane, 1, shape.transposed)) << 16;
        }
    }
}

struct MmaArgument {
    float* d;
    const uint32_t *a, *b;
};

float half_of(uint32_t pair, int half, bool is_bf16) {
    const uint16_t bits = pair >> (16 * half);
    return is_bf16 ? from_bf16(bits) : from_fp16(bits);
}

void multiply(Rendezvous& r, bool is_bf16) {
    float a[16][16], b[16][8], d[16][8];
    ++counters.mma;
    for (int lane = 0; lane < 32; ++lane) {
        const MmaArgument& x = argument_of<MmaArgument>(r, lane);
        const int row = lane / 4, column = 2 * (lane % 4);
        for (int half = 0; half < 2; ++half) {
            for (int i = 0; i < 4; ++i) a[row + i % 2 * 8][column + half + i / 2 * 8] = half_of(x.a[i], half, is_bf16);
            for (int i = 0; i < 2; ++i) b[column + half + i * 8][row] = half_of(x.b[i], half, is_bf16);
        }
        for (int i = 0; i < 4; ++i) d[row + i / 2 * 8][column + i % 2] = x.d[i];
    }
    for (int m = 0; m < 16; ++m) {
        for (int k = 0; k < 16; ++k) {
            for (int n = 0; n < 8; ++n) d[m][n] += a[m][k] * b[k][n];
        }
    }
    for (int lane = 0; lane < 32; ++lane) {
        float* out = argument_of<MmaArgument>(r, lane).d;
        for (int i = 0; i < 4; ++i) out[i] = d[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2];
    }
}

void meet_for_matrices(bool load, uint32_t* registers, int count, bool transposed, uint32_t address, void* pc) {
    MatrixArgument argument{registers, address, count, transposed};
    meet(load ? Collective::ldmatrix : Collective::stmatrix, kWholeWarp, &argument, pc,
         [&](Rendezvous& r) { move_matrices(r, load, pc); });
    if (load) mark_registers_written(registers, 4 * count);
}

}  // namespace

const char* name(Collective kind) {
    static const char* const names[] = {"__syncwarp", "shfl",        "ldmatrix",   "stmatrix",
                                        "mma.sync",   "wgmma.fence", "wgmma",      "wgmma.commit",
                                        "wgmma.wait", "setmaxnreg",  "elect.sync", "tensormap.cp_fenceproxy"};
    return names[int(kind)];
}

uint32_t shuffle(uint32_t value, Shuffle mode, int argument, uint32_t mask) {
    void* pc = CALLER;
    ShuffleArgument self{value, value, mode, argument};
    meet(Collective::shfl, mask, &self, pc, [&](Rendezvous& r) {
        for_lanes(r.arrived, [&](int lane) {
            ShuffleArgument& a = argument_of<ShuffleArgument>(r, lane);
            const int source = shuffle_source(a, lane);
            if (source < 0 || source > 31) return;
            if (r.arrived >> source & 1) {
                a.result = argument_of<ShuffleArgument>(r, source).value;
            } else {
                report("divergence", pc, "shfl: lane %d reads lane %d, which takes no part", lane, source);
            }
        });
    });
    return self.result;
}

uint32_t elect(uint32_t mask) {
    uint32_t lane = __builtin_ctz(mask);
    meet(Collective::elect, mask, &lane, CALLER, [&](Rendezvous& r) {
        // Which lane it is, nothing says; the same mask elects the same one.
        if (options.seed) lane = 31 - __builtin_clz(mask);
        for_lanes(r.arrived, [&](int other) { argument_of<uint32_t>(r, other) = lane; });
    });
    return lane;
}

void publish_map(void* destination, uint32_t map) {
    void* pc = CALLER;
    meet(Collective::publish_map, kWholeWarp, nullptr, pc, [&](Rendezvous&) {
        const uint32_t offset = map - kSharedBase;
        if (!inside_shared(offset, sizeof(CUtensorMap), pc, "tensor map")) abandon();
        if (!is_global(destination) || reinterpret_cast<uintptr_t>(destination) % alignof(CUtensorMap)) {
            report("misaligned", pc, "a tensor map at %p: no device memory, or no multiple of 128", destination);
            abandon();
        }
        thread_reads_shared(offset, sizeof(CUtensorMap), block.current, pc, "tensormap.cp_fenceproxy");
        check_global(destination, sizeof(CUtensorMap), true, pc, "tensormap.cp_fenceproxy");
        memcpy(destination, block.shared + offset, sizeof(CUtensorMap));
        PublishedMap& published = block.maps[destination] = {};
        const int first = block.current / 32 * 32;
        for (int t = first; t < first + 32; ++t) published.published.emplace_back(t, block.threads[t].known.all[t]);
    });
}

void matrix_load(uint32_t* registers, int count, bool transposed, uint32_t address) {
    meet_for_matrices(true, registers, count, transposed, address, CALLER);
}

void matrix_store(const uint32_t* registers, int count, bool transposed, uint32_t address) {
    meet_for_matrices(false, const_cast<uint32_t*>(registers), count, transposed, address, CALLER);
}

void mma_m16n8k16(float* d, const uint32_t* a, const uint32_t* b, bool is_bf16) {
    MmaArgument argument{d, a, b};
    meet(Collective::mma, kWholeWarp, &argument, CALLER, [&](Rendezvous& r) { multiply(r, is_bf16); });
    mark_registers_written(d, 16);
}

}  // namespace emu

using namespace emu;

void __syncwarp(unsigned mask) {
    meet(Collective::syncwarp, mask, nullptr, CALLER, [](Rendezvous& r) {
        const int first = block.current / 32 * 32;
        Knowledge together;
        together.reset(block.num_agents);
        for_lanes(r.arrived, [&](int lane) {
            together.join(block.threads[first + lane].known);
            next_epoch(first + lane);
        });
        for_lanes(r.arrived, [&](int lane) { block.threads[first + lane].known.join(together); });
    });
}
