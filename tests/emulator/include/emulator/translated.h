// What C++ made by ptx2cpp.py uses: every load and store reports to the same hooks as instrumented source does.
#pragma once
#include <cstring>
#include <type_traits>

#include "common/device.h"
#include "emulator/launch.h"

extern "C" {
void __tsan_read1(void*);
void __tsan_read2(void*);
void __tsan_read4(void*);
void __tsan_read8(void*);
void __tsan_read16(void*);
void __tsan_write1(void*);
void __tsan_write2(void*);
void __tsan_write4(void*);
void __tsan_write8(void*);
void __tsan_write16(void*);
}

namespace ptx {

constexpr uint32_t kSharedBase = 1024;

template <class To, class From>
To bits(From x) {
    To to;
    if constexpr (sizeof(To) == sizeof(From)) {
        memcpy(&to, &x, sizeof to);
    } else {  // the low half of a wider register
        static_assert(sizeof(To) < sizeof(From));
        memcpy(&to, &x, sizeof to);
    }
    return to;
}

inline void* shared(uint32_t address) { return dev::dynamic_shared() + int32_t(address - kSharedBase); }
inline uint64_t shared_address(const void* p) { return dev::shared_address(p); }

template <class T, size_t kCount>
void load(void* p, T (&t)[kCount]) {
    switch (sizeof t) {
        case 1:
            __tsan_read1(p);
            break;
        case 2:
            __tsan_read2(p);
            break;
        case 4:
            __tsan_read4(p);
            break;
        case 8:
            __tsan_read8(p);
            break;
        case 16:
            __tsan_read16(p);
            break;
    }
    memcpy(t, p, sizeof t);
}

template <class T, size_t kCount>
void store(void* p, const T (&t)[kCount]) {
    if (emu::is_repeated_store(p, t, sizeof t)) return;
    switch (sizeof t) {
        case 1:
            __tsan_write1(p);
            break;
        case 2:
            __tsan_write2(p);
            break;
        case 4:
            __tsan_write4(p);
            break;
        case 8:
            __tsan_write8(p);
            break;
        case 16:
            __tsan_write16(p);
            break;
    }
    memcpy(p, t, sizeof t);
}

// Signed overflow wraps in PTX.
template <class T>
T wrap(T a, T b, char operation) {
    using U = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
    return T(operation == '+' ? U(a) + U(b) : operation == '-' ? U(a) - U(b) : U(a) * U(b));
}

template <class T>
T high_product(T a, T b) {
    using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
    return T(Wide(a) * Wide(b) >> 8 * sizeof(T));
}

// Shifts by the width or more give 0, or the sign.
template <class T>
T shift_left(T x, uint32_t by) {
    return by >= 8 * sizeof(T) ? T(0) : T(x << by);
}
template <class T>
T shift_right(T x, uint32_t by) {
    return by >= 8 * sizeof(T) ? T(std::is_signed_v<T> && x < T(0) ? -1 : 0) : T(x >> by);
}

template <class T>
T insert_bits(T bits, T into, uint32_t position, uint32_t length) {
    const T mask = shift_left(length >= 8 * sizeof(T) ? T(-1) : T((T(1) << length) - 1), position);
    return (into & ~mask) | (shift_left(bits, position) & mask);
}

// The highest bit of the field is the sign.
template <class T>
T extract_bits(T x, uint32_t position, uint32_t length) {
    if (!length) return 0;
    const T moved = shift_right(x, position);
    const uint32_t above = position + length >= 8 * sizeof(T) ? 0 : 8 * sizeof(T) - length;
    return T(shift_left(moved, above)) >> above;
}

inline uint32_t add_halves(uint32_t a, uint32_t b) { return (a + b & 0xffff) | (a & 0xffff0000) + (b & 0xffff0000); }

// Four bytes of the eight in {b, a}, each chosen by a nibble, whose highest bit asks for copies of the byte's sign.
inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t choice) {
    const uint64_t bytes = uint64_t(b) << 32 | a;
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i, choice >>= 4) {
        const uint8_t byte = bytes >> 8 * (choice & 7);
        result |= uint32_t(choice & 8 ? uint8_t(int8_t(byte) >> 7) : byte) << 8 * i;
    }
    return result;
}

// Subnormal numbers are zeros, before and after.
inline float flushed_fma(float a, float b, float c) {
    return dev::flush_subnormal(
        __builtin_fmaf(dev::flush_subnormal(a), dev::flush_subnormal(b), dev::flush_subnormal(c)));
}

// cp.async copies all of its bytes or, for a source size of 0, writes zeros; our kernels use nothing in between.
inline bool is_whole(uint32_t source_bytes, uint32_t bytes) { return source_bytes == bytes; }

}  // namespace ptx
