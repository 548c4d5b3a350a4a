// The library's C interface: which instruction set, which thread does what. It knows pointers and sizes alone;
// arguments come as arrays of int64 in the order of the structures in params.h.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#if TIVTOK_AMX && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "params.h"

namespace tivtok {

extern const Variant portable;
#if TIVTOK_X86
extern const Variant avx2, avx512;
#endif
#if TIVTOK_AMX
extern const ForwardKernels amx_forward;
#endif

namespace {

// Whether there are tile registers for bfloat16, and the kernel lets this process have them: asked, it makes room for
// them in what it saves of a thread.
bool amx_runs_here() {
#if TIVTOK_AMX && defined(__linux__) && defined(SYS_arch_prctl)
    constexpr unsigned AMX_BF16 = 1u << 22, AMX_TILE = 1u << 24;
    constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || ~d & (AMX_BF16 | AMX_TILE)) return false;
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    return false;
#endif
}

// What a name stands for: an instruction set's kernels, and which ones take the forward of bfloat16.
struct Choice {
    const char* name;
    bool runs_here;
    const Variant* kernels;
    const ForwardKernels* bf16_forward;

    const ForwardKernels& forward(ElementType type) const {
        return type == ElementType::bf16 ? *bf16_forward : kernels->forward;
    }
};

// From the least to the most demanding.
std::vector<Choice> find_choices() {
    std::vector<Choice> all = {{"portable", true, &portable, &portable.forward}};
#if TIVTOK_X86
    __builtin_cpu_init();
    const bool fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool wide = fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    all.push_back({"avx2", fma, &avx2, &avx2.forward});
    all.push_back({"avx512", wide, &avx512, &avx512.forward});
#endif
#if TIVTOK_AMX
    all.push_back({"amx", wide && amx_runs_here(), &avx512, &amx_forward});
#endif
    return all;
}

const std::vector<Choice>& choices() {
    static const std::vector<Choice> all = find_choices();
    return all;
}

const Choice* best() {
    const Choice* found = nullptr;
    for (const Choice& choice : choices())
        if (choice.runs_here) found = &choice;
    return found;
}

std::atomic<const Choice*> chosen{best()};

// A thread's scratch memory, kept for its next call unless it is large.
class Scratch {
  public:
    float* reserve(int64_t floats) {
        if (floats > held_) {
            data_.reset(static_cast<float*>(std::aligned_alloc(64, round_up(floats, PANEL) * sizeof(float))));
            if (!data_) throw std::bad_alloc();
            held_ = floats;
        }
        return data_.get();
    }
    void shrink() {
        if (held_ > KEPT) data_.reset(), held_ = 0;
    }

  private:
    static constexpr int64_t KEPT = 4 << 20;
    struct Free {
        void operator()(float* p) const { std::free(p); }
    };
    std::unique_ptr<float, Free> data_;
    int64_t held_ = 0;
};

thread_local Scratch scratch;

// GOMP_parallel of the OpenMP runtime that the caller's process already uses, or null.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

// Calls body(i, end) for i in [0, count) on up to `threads` threads. Each takes neighbours up to `end` at a time, fewer
// of them as less is left. False if memory ran out.
template <class Body>
bool for_each(int64_t count, int64_t threads, Parallel parallel, const Body& body) {
    threads = std::clamp<int64_t>(threads, 1, std::max<int64_t>(count, 1));
    struct Shared {
        const Body& body;
        int64_t count, threads;
        std::atomic<int64_t> next{0};
        std::atomic<bool> failed{false};

        bool take(int64_t& i, int64_t& end) {
            i = next.load(std::memory_order_relaxed);
            do {
                end = i + std::clamp<int64_t>((count - i) / (8 * threads), 1, 8);
            } while (i < count && !next.compare_exchange_weak(i, end, std::memory_order_relaxed));
            return i < count;
        }

        static void work(void* data) {
            Shared& shared = *static_cast<Shared*>(data);
            try {
                for (int64_t i, end; shared.take(i, end);)
                    for (; i < end; i++) shared.body(i, end);
            } catch (const std::bad_alloc&) {
                shared.failed = true;
            }
            scratch.shrink();
        }
    } shared{body, count, threads};

    if (threads <= 1) {
        Shared::work(&shared);
    } else if (parallel) {
        parallel(Shared::work, &shared, static_cast<unsigned>(threads), 0);
    } else {
        std::vector<std::thread> others;
        for (int64_t i = 1; i < threads; i++) others.emplace_back(Shared::work, &shared);
        Shared::work(&shared);
        for (std::thread& other : others) other.join();
    }
    return !shared.failed;
}

template <class Params>
Params read(const int64_t* fields) {
    static_assert(sizeof(Params) % sizeof(int64_t) == 0 && sizeof(void*) == sizeof(int64_t));
    Params params;
    std::memcpy(&params, fields, sizeof params);
    return params;
}

}  // namespace
}  // namespace tivtok

using namespace tivtok;

#define TIVTOK_EXPORT extern "C" __attribute__((visibility("default")))

// int64 fields that forward and backward read.
TIVTOK_EXPORT int64_t tivtok_cpu_forward_fields() { return sizeof(ForwardParams) / sizeof(int64_t); }
TIVTOK_EXPORT int64_t tivtok_cpu_backward_fields() { return sizeof(BackwardParams) / sizeof(int64_t); }

// The stamp of the sources that this was built from, as tivtok_kernels/cpu/sources.py has it.
#ifndef TIVTOK_SOURCES
#define TIVTOK_SOURCES ""
#endif
TIVTOK_EXPORT const char* tivtok_cpu_sources() { return TIVTOK_SOURCES; }

// Names of all variants, each followed by a space if this machine runs it, by an exclamation mark if not.
TIVTOK_EXPORT void tivtok_cpu_variants(char* text, int64_t size) {
    text[0] = 0;
    for (const Choice& choice : choices()) {
        std::strncat(text, choice.name, size - std::strlen(text) - 1);
        std::strncat(text, choice.runs_here ? " " : "!", size - std::strlen(text) - 1);
    }
}

TIVTOK_EXPORT const char* tivtok_cpu_variant() { return chosen.load()->name; }

// Uses the named variant from now on; 0 if there is none of that name that runs here.
TIVTOK_EXPORT int tivtok_cpu_use(const char* name) {
    for (const Choice& choice : choices())
        if (choice.runs_here && std::strcmp(choice.name, name) == 0) {
            chosen = &choice;
            return 1;
        }
    return 0;
}

// 0: done. 1: out of memory.
TIVTOK_EXPORT int tivtok_cpu_forward(const int64_t* fields, double scale, int64_t threads, void* parallel) {
    const auto params = read<ForwardParams>(fields);
    const ForwardKernels& kernels = chosen.load()->forward(params.shape.type);
    const Plan& plan = params.plan;
    const auto run = reinterpret_cast<Parallel>(parallel);
    const int64_t key_heads = params.shape.heads / params.shape.group;
    bool done = for_each(plan.num_units * key_heads, threads, run, [&](int64_t i, int64_t end) {
        const Unit& unit = plan.units[i / key_heads];
        const Next next = {i + 1 < end ? &plan.units[(i + 1) / key_heads] : nullptr, (i + 1) % key_heads};
        float* const memory = scratch.reserve(kernels.scratch(params, unit));
        kernels.unit(params, unit, i % key_heads, next, static_cast<float>(scale), memory);
    });
    const int64_t heads = params.shape.heads;
    done = done && for_each(plan.num_q_merges * heads, threads, run,
                            [&](int64_t i, int64_t) { kernels.merge(params, plan.q_merges[i / heads], i % heads); });
    return !done;
}

TIVTOK_EXPORT int tivtok_cpu_backward(const int64_t* fields, double scale, int64_t threads, void* parallel) {
    const auto params = read<BackwardParams>(fields);
    const BackwardKernels& kernels = chosen.load()->kernels->backward;
    const Plan& plan = params.plan;
    const auto run = reinterpret_cast<Parallel>(parallel);
    const auto c = static_cast<float>(scale);
    const int64_t heads = params.shape.heads, key_heads = heads / params.shape.group;
    bool done = for_each(plan.num_units * key_heads, threads, run, [&](int64_t i, int64_t) {
        const Unit& unit = plan.units[i / key_heads];
        float* const memory = scratch.reserve(kernels.scratch(params, unit));
        kernels.unit(params, unit, i % key_heads, c, memory);
    });
    const int64_t runs = plan.num_row_runs + plan.num_key_runs;
    done = done && for_each(runs * key_heads, threads, run, [&](int64_t i, int64_t) {
               const bool of_keys = i / key_heads < plan.num_key_runs;
               const Run& own =
                   of_keys ? plan.key_runs[i / key_heads] : plan.row_runs[i / key_heads - plan.num_key_runs];
               float* const memory = scratch.reserve(kernels.run_scratch(params, own));
               (of_keys ? kernels.key_gradients : kernels.row_gradients)(params, own, i % key_heads, c, memory);
           });
    done = done && for_each(plan.num_q_merges * heads, threads, run, [&](int64_t i, int64_t) {
               kernels.merge_q(params, plan.q_merges[i / heads], i % heads, c);
           });
    done = done &&
           for_each((plan.num_k_merges + plan.num_frame_merges) * key_heads, threads, run, [&](int64_t i, int64_t) {
               const int64_t merge = i / key_heads;
               const bool tiv = merge < plan.num_k_merges;
               const Merge& rows = tiv ? plan.k_merges[merge] : plan.frame_merges[merge - plan.num_k_merges];
               kernels.merge_keys(params, rows, i % key_heads, c, tiv);
           });
    return !done;
}
