// A thread's registers are the variables on its stack. Each word there carries the number of the wgmma.fence after
// which it was last written, so that wgmma on registers written without a fence is found.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

#include "state.h"

namespace emu {

namespace {

Epoch* marks;
Epoch last_fence;

size_t stack_offset(const void* p) { return static_cast<const uint8_t*>(p) - stack_of(0); }

void init_marks() {
    if (marks) return;
    void* p = mmap(nullptr, kStackBytes * kMaxThreads, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) perror("emulator: no memory for register marks"), exit(1);
    marks = static_cast<Epoch*>(p);
}

}  // namespace

bool is_register(const void* p) { return stack_offset(p) < kStackBytes * kMaxThreads; }

void mark_registers_written(const void* p, uint32_t bytes) {
    if (!block.tracks_registers || !is_register(p)) return;
    const size_t first = stack_offset(p) / 4;
    for (size_t i = first; i < first + (bytes + 3) / 4; ++i) marks[i] = block.self().register_fence;
}

bool written_since_fence(int thread, const void* p, uint32_t bytes) {
    const size_t first = stack_offset(p) / 4;
    for (size_t i = first; i < first + bytes / 4; ++i) {
        if (marks[i] == block.threads[thread].register_fence) return true;
    }
    return false;
}

void fence_registers(Thread& thread) {
    init_marks();
    block.tracks_registers = true;
    thread.register_fence = ++last_fence;
}

}  // namespace emu
