// Kernels are compiled with -fsanitize=thread and linked without it: every plain load and store calls one of these.
#include <cstring>

#include "state.h"

namespace emu {

namespace {

inline void access(const void* p, uint32_t bytes, bool write, void* pc) {
    if (!in_kernel) return;
    const size_t window_offset = static_cast<const uint8_t*>(p) - shared_window;
    const char* what = write ? "store" : "load";
    if (window_offset < kSharedWindow) {
        const uint32_t offset = window_offset - kSharedGuard;
        if (!inside_shared(offset, bytes, pc, what)) return;
        if (offset % bytes) report("misaligned", pc, "%s of %u bytes at shared offset %u", what, bytes, offset);
        if (write) {
            thread_writes_shared(offset, bytes, block.current, pc, what);
        } else {
            thread_reads_shared(offset, bytes, block.current, pc, what);
        }
    } else if (is_global(p)) {
        if (reinterpret_cast<uintptr_t>(p) % bytes)
            report("misaligned", pc, "%s of %u bytes at address %p", what, bytes, p);
        check_global(p, bytes, write, pc, what);
    } else if (is_register(p)) {
        if (!block.tracks_registers) return;
        check_register(p, bytes, write, pc);
        if (write) mark_registers_written(p, bytes);
    } else if (write) {  // parameters and constants may be read
        report("oob-global", pc, "store of %u bytes at %p, an address outside all memory of the kernel", bytes, p);
        abandon();  // before it harms the test's process
    }
}

void access_range(const void* p, size_t bytes, bool write, void* pc) {
    const auto* q = static_cast<const uint8_t*>(p);
    if (!in_kernel) return;
    for (size_t i = 0, step; i < bytes; i += step) {
        const size_t left = bytes - i, address = reinterpret_cast<uintptr_t>(q + i);
        step = left >= 16 && address % 16 == 0 ? 16 : left >= 4 && address % 4 == 0 ? 4 : 1;
        access(q + i, step, write, pc);
    }
}

}  // namespace
}  // namespace emu

using emu::access;
using emu::access_range;

extern "C" {

#define HOOKS(n)                                                            \
    void __tsan_read##n(void* p) { access(p, n, false, CALLER); }           \
    void __tsan_write##n(void* p) { access(p, n, true, CALLER); }           \
    void __tsan_unaligned_read##n(void* p) { access(p, n, false, CALLER); } \
    void __tsan_unaligned_write##n(void* p) { access(p, n, true, CALLER); }
HOOKS(1);
HOOKS(2);
HOOKS(4);
HOOKS(8);
HOOKS(16);
#undef HOOKS

void __tsan_init() {}
void __tsan_read_range(void* p, size_t n) { access_range(p, n, false, CALLER); }
void __tsan_write_range(void* p, size_t n) { access_range(p, n, true, CALLER); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

void* __tsan_memcpy(void* to, const void* from, size_t n) {
    access_range(from, n, false, CALLER);
    access_range(to, n, true, CALLER);
    return memcpy(to, from, n);
}
void* __tsan_memset(void* to, int value, size_t n) {
    access_range(to, n, true, CALLER);
    return memset(to, value, n);
}
}
