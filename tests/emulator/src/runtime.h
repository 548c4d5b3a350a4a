// The emulator's C interface, for tests (cuda_emulator.py).
#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {

namespace emu {

struct Options {
    uint64_t seed = 0;          // 0: threads in order, copies as late as possible; else both in random order
    uint32_t eager_copies = 0;  // TMA loads complete at issue
    uint32_t seconds = 60;      // of processor time after which a launch is given up
    uint32_t record = 0;        // keeps Events
    // Lets a thread of translated PTX store what is already there, whoever wrote it: triton has several threads store
    // the same number where its layout holds it several times.
    uint32_t repeated_stores = 0;
    // Lets TMA loads complete on mbarriers that no fence has published: triton's specialised warps do so.
    uint32_t unpublished_mbarriers = 0;
};

enum EventKind : uint32_t {  // subject, amount; shared offsets first ... last
    kInit,                   // mbarrier, arrivals of a phase
    kArrive,                 // mbarrier
    kExpect,                 // mbarrier, bytes: also an arrival
    kWait,                   // mbarrier, parity; when it is over
    kSync,                   // named barrier, threads; 0 is __syncthreads
    kArriveNamed,            // the same without waiting
    kLoad,                   // mbarrier, bytes; destination
    kCopy,                   // cp.async: destination
    kCopiesCommitted,
    kCopiesWaited,  // -, pending groups
    kRead,          // a wgmma's operand; of the first thread of the warpgroup, as all of wgmma
    kReadsCommitted,
    kReadsWaited,  // -, pending groups
    kPlainRead,
    kPlainWrite,
};

// Something a thread did to barriers or to shared memory.
struct Event {
    uint32_t block, thread, kind, subject, amount, first, last;
};

struct Counters {  // since emu_configure
    uint64_t launches, blocks, switches, mma, wgmma, ldmatrix, ldmatrix_wavefronts, ldmatrix_ideal, cp_async, tma_loads,
        tma_stores;
};

}  // namespace emu

// Device memory between red zones, not initialised. Null if the arena is full.
void* emu_alloc(size_t bytes, const char* name);
void emu_free_all();
void emu_mark_initialised(void* p, size_t bytes);
// 1 for each byte that a kernel or emu_mark_initialised has written.
void emu_initialised(const void* p, size_t bytes, uint8_t* mask);

// Sets the options of the next launches and forgets all findings and counts.
void emu_configure(const emu::Options* options);
const emu::Counters* emu_counters();
// A JSON list of findings {kind, message, where, count}; valid until the next call.
const char* emu_reports();
// The events since emu_configure, in the order in which they happened; valid until the next call.
const emu::Event* emu_events(size_t* count);

// A dlopen handle of C++ made by ptx2cpp.py, whose kernels then replace those of the same name; null: none.
void emu_use_ptx(void* library);
}
