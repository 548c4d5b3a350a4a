// Threads of a block as fibers: one runs until it waits, then another one of its warp, then another warp.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

#include "state.h"

#if !defined(__x86_64__)
#error "the emulator switches stacks by hand and knows x86-64 only"
#endif

// Saves the callee-saved registers on the old stack and takes them from the new one.
asm(R"(
.text
.type emu_switch,@function
emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emu_switch,.-emu_switch
)");
extern "C" void emu_switch(void** save, void* load);

namespace emu {

Block block;

namespace {

uint8_t* stacks;
void* main_stack;
uint64_t random_state;

uint8_t* make_stacks() {
    const size_t bytes = kStackBytes * kMaxThreads;
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) perror("emulator: no memory for stacks"), exit(1);
    for (int i = 0; i < kMaxThreads; ++i) mprotect(static_cast<uint8_t*>(p) + i * kStackBytes, 4096, PROT_NONE);
    return static_cast<uint8_t*>(p);
}

int lane_from(uint32_t runnable, int start) {
    const uint32_t later = start < 32 ? runnable >> start << start : 0;
    return __builtin_ctz(later ? later : runnable);
}

// The next thread to run, or -1 when none can. Late copies are completed only when somebody must wait for them (or by
// chance).
int pick() {
    const bool random = options.seed != 0;
    if (random && !block.loads.empty() && random_number() % 64 == 0)
        complete_load(random_number() % block.loads.size());
    for (;;) {
        const int warp = block.current < 0 ? 0 : block.current / 32;
        if (block.current >= 0 && block.warps[warp].runnable) {
            return warp * 32 + lane_from(block.warps[warp].runnable, block.current % 32 + 1);
        }
        const int start = random ? random_number() % block.num_warps : warp + 1;
        for (int i = 0; i < block.num_warps; ++i) {
            const int w = (start + i) % block.num_warps;
            if (block.warps[w].runnable)
                return w * 32 + lane_from(block.warps[w].runnable, random ? random_number() % 32 : 0);
        }
        if (block.loads.empty()) return -1;
        complete_load(random ? random_number() % block.loads.size() : 0);
    }
}

void switch_to(int next) {
    const int self = block.current;
    if (next == self) return;
    ++counters.switches;
    block.current = next;
    emu_switch(self < 0 ? &main_stack : &block.threads[self].stack_pointer,
               next < 0 ? main_stack : block.threads[next].stack_pointer);
}

void fiber_main() {
    (*block.body)();
    Thread& thread = block.self();
    report_unfinished(thread);
    thread.exited = true;
    ++block.exited;
    const uint32_t bit = 1u << (thread.index % 32);
    block.warp().live &= ~bit;
    block.warp().runnable &= ~bit;
    switch_to(pick());
    abort();
}

void report_deadlock() {
    std::string waiting;
    void* first = nullptr;
    const char* last_what = nullptr;
    void* last_pc = nullptr;
    int shown = 0;
    for (Thread& t : block.threads) {
        if (t.exited || (t.waits_in == last_what && t.waits_at == last_pc) || shown == 6) continue;
        last_what = t.waits_in, last_pc = t.waits_at;
        if (!first) first = t.waits_at;
        waiting += "\n  thread " + std::to_string(t.index) + " waits in " + t.waits_in + t.waits_for() + " at " +
                   location(t.waits_at);
        ++shown;
    }
    report("deadlock", first, "%d of %d threads cannot go on:%s", block.num_threads - block.exited, block.num_threads,
           waiting.c_str());
    block.abandoned = true;
}

}  // namespace

uint64_t random_number() {
    random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
    return random_state;
}

uint8_t* stack_of(int thread) {
    if (!stacks) stacks = make_stacks();
    return stacks + thread * kStackBytes;
}

void sleep(const char* what, void* pc, std::function<std::string()> reason) {
    Thread& thread = block.self();
    thread.waits_in = what, thread.waits_at = pc, thread.waits_for = std::move(reason);
    block.warp().runnable &= ~(1u << (thread.index % 32));
    switch_to(pick());
}

void wake(int thread) { block.warps[thread / 32].runnable |= 1u << (thread % 32); }

void abandon() {
    block.abandoned = true;
    switch_to(-1);
    abort();
}

void run_block() {
    block.current = -1, block.exited = 0;
    random_state = (options.seed * 0x9E3779B97F4A7C15ull + block.number) | 1;
    for (Thread& t : block.threads) {
        block.warps[t.index / 32].live |= 1u << (t.index % 32);
        block.warps[t.index / 32].runnable |= 1u << (t.index % 32);
        void** top = reinterpret_cast<void**>(stack_of(t.index) + kStackBytes - 64);
        *--top = nullptr;  // keeps the stack aligned as a call would
        *--top = reinterpret_cast<void*>(fiber_main);
        for (int i = 0; i < 6; ++i) *--top = nullptr;
        t.stack_pointer = top;
    }
    in_kernel = true;
    switch_to(pick());
    in_kernel = false;
    if (!block.abandoned && block.exited != block.num_threads) report_deadlock();
    if (!block.abandoned && !block.loads.empty()) {
        report("tma", block.loads[0].tile.pc, "the block ends with a TMA load in flight");
    }
}

}  // namespace emu
