// Device memory: an arena with red zones. Every byte knows whether it belongs to an allocation and was written; every
// two bytes know who wrote and who read them last in this launch, so that conflicts between blocks (which a launch
// cannot order) and races within a block are found.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "state.h"

namespace emu {

namespace {

constexpr size_t kArena = 1ull << 29, kRedZone = 1024;

enum ByteState : uint8_t { outside = 0, allocated = 1, initialised = 2 };

struct Toucher {
    uint32_t launch = 0, block = 0, thread = 0;
    Epoch epoch = 0;
};
struct Touched {
    Toucher writer, reader;
};

struct Allocation {
    uint8_t* start;
    size_t bytes;
    std::string name;
};

uint8_t* arena;
uint8_t* states;
Touched* touched;
size_t top = kRedZone;
std::vector<Allocation> allocations;

void* reserve(size_t bytes) {
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) perror("emulator: no memory for the arena"), exit(1);
    return p;
}

void init() {
    if (arena) return;
    arena = static_cast<uint8_t*>(reserve(kArena));
    states = static_cast<uint8_t*>(reserve(kArena));
    touched = static_cast<Touched*>(reserve(kArena / 2 * sizeof(Touched)));
}

std::string place(const void* p) {
    const uint8_t* q = static_cast<const uint8_t*>(p);
    for (const Allocation& a : allocations) {
        if (q >= a.start - kRedZone && q < a.start + a.bytes + kRedZone) {
            return "offset " + std::to_string(q - a.start) + " of " + a.name + " (" + std::to_string(a.bytes) +
                   " bytes)";
        }
    }
    return "an address outside all allocations";
}

// Whether what `before` did is ordered before an access by the current thread.
bool ordered(const Toucher& before) {
    if (before.launch != block.launch) return true;
    return before.block == block.number && block.self().known.all[before.thread] >= before.epoch;
}

void report_conflict(const Toucher& other, const char* verb, const void* p, void* pc, const char* what) {
    if (other.block != block.number) {
        report("global-conflict", pc, "%s at %s, which block %u %s in the same launch", what, place(p).c_str(),
               other.block, verb);
    } else {
        report("race", pc, "%s at %s, which thread %u %s without synchronisation", what, place(p).c_str(), other.thread,
               verb);
    }
}

}  // namespace

bool is_global(const void* p) { return arena && size_t(static_cast<const uint8_t*>(p) - arena) < kArena; }

bool is_written_in_launch(const void* p) {
    return touched[(static_cast<const uint8_t*>(p) - arena) / 2].writer.launch == block.launch;
}

void check_global(const void* p, size_t bytes, bool write, void* pc, const char* what) {
    const size_t start = static_cast<const uint8_t*>(p) - arena;
    for (size_t i = start; i < start + bytes; ++i) {
        if (states[i] == outside)
            return report("oob-global", pc, "%s of %zu bytes at %s", what, bytes, place(arena + i).c_str());
        if (!write && states[i] == allocated) {
            return report("uninitialised-global", pc, "%s at %s, which nobody wrote", what, place(arena + i).c_str());
        }
    }
    if (write) memset(states + start, initialised, bytes);
    const Toucher me = {block.launch, block.number, uint32_t(block.current), block.self().known.all[block.current]};
    for (size_t i = start / 2; i < (start + bytes + 1) / 2; ++i) {
        Touched& cell = touched[i];
        if (!ordered(cell.writer)) report_conflict(cell.writer, "wrote", p, pc, what);
        if (write && !ordered(cell.reader)) report_conflict(cell.reader, "read", p, pc, what);
        (write ? cell.writer : cell.reader) = me;
    }
}

}  // namespace emu

using namespace emu;

void* emu_alloc(size_t bytes, const char* name) {
    init();
    const size_t size = (bytes + 255) / 256 * 256 + kRedZone;
    if (top + size > kArena) return nullptr;
    uint8_t* p = arena + top;
    memset(p - kRedZone, 0xff, size + kRedZone);
    memset(states + top, allocated, bytes);
    allocations.push_back({p, bytes, name});
    top += size;
    return p;
}

void emu_free_all() {
    init();
    memset(states, outside, top);
    top = kRedZone;
    allocations.clear();
}

void emu_mark_initialised(void* p, size_t bytes) {
    memset(states + (static_cast<uint8_t*>(p) - arena), initialised, bytes);
}

void emu_initialised(const void* p, size_t bytes, uint8_t* mask) {
    const uint8_t* s = states + (static_cast<const uint8_t*>(p) - arena);
    for (size_t i = 0; i < bytes; ++i) mask[i] = s[i] == initialised;
}
