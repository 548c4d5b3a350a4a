// Primitives of sm_90a as inline PTX; device.h says what each does. Only kernels compiled for sm_90a may use them.
#pragma once
#include <cuda.h>

#include <cstdint>
#include <type_traits>

namespace dev {

using TensorMap = CUtensorMap;

// ----------------------------------------------------------------------------------------------------- mbarriers

DEVICE void mbar_init(uint32_t bar, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}

DEVICE void fence_mbar_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

DEVICE void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

DEVICE void mbar_arrive(uint32_t bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

DEVICE void mbar_arrive_expect_tx(uint32_t bar, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}

DEVICE bool mbar_try_wait(uint32_t bar, uint32_t parity) {
    uint32_t done;
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(bar), "r"(parity)
                 : "memory");
    return done;
}

// ----------------------------------------------------------------------------------------------------------- TMA

#define TIVTOK_TMA_LOAD(RANK, COORDINATES, ...)                                                       \
    asm volatile("cp.async.bulk.tensor." RANK                                                         \
                 ".shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {" COORDINATES \
                 "}], [%2];" ::"r"(dst),                                                              \
                 "l"(map), "r"(bar), __VA_ARGS__                                                      \
                 : "memory")

DEVICE void tma_load_2d(uint32_t dst, const TensorMap* map, uint32_t bar, int c0, int c1) {
    TIVTOK_TMA_LOAD("2d", "%3, %4", "r"(c0), "r"(c1));
}
DEVICE void tma_load_3d(uint32_t dst, const TensorMap* map, uint32_t bar, int c0, int c1, int c2) {
    TIVTOK_TMA_LOAD("3d", "%3, %4, %5", "r"(c0), "r"(c1), "r"(c2));
}
DEVICE void tma_load_4d(uint32_t dst, const TensorMap* map, uint32_t bar, int c0, int c1, int c2, int c3) {
    TIVTOK_TMA_LOAD("4d", "%3, %4, %5, %6", "r"(c0), "r"(c1), "r"(c2), "r"(c3));
}

#undef TIVTOK_TMA_LOAD

#define TIVTOK_TMA_STORE(RANK, COORDINATES, ...)                                                       \
    asm volatile("cp.async.bulk.tensor." RANK ".global.shared::cta.tile.bulk_group [%0, {" COORDINATES \
                 "}], [%1];" ::"l"(map),                                                               \
                 "r"(src), __VA_ARGS__                                                                 \
                 : "memory")

DEVICE void tma_store_2d(const TensorMap* map, uint32_t src, int c0, int c1) {
    TIVTOK_TMA_STORE("2d", "%2, %3", "r"(c0), "r"(c1));
}
DEVICE void tma_store_3d(const TensorMap* map, uint32_t src, int c0, int c1, int c2) {
    TIVTOK_TMA_STORE("3d", "%2, %3, %4", "r"(c0), "r"(c1), "r"(c2));
}
DEVICE void tma_store_4d(const TensorMap* map, uint32_t src, int c0, int c1, int c2, int c3) {
    TIVTOK_TMA_STORE("4d", "%2, %3, %4, %5", "r"(c0), "r"(c1), "r"(c2), "r"(c3));
}

#undef TIVTOK_TMA_STORE

DEVICE void tma_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

template <int kPending>
DEVICE void tma_store_wait() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
}

template <int kPending>
DEVICE void tma_store_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

DEVICE void tma_prefetch(const TensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }

// ------------------------------------------------------------------------------------------------------ stmatrix

DEVICE void stmatrix_x4(uint32_t address, const uint32_t (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r[0]),
                 "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}

DEVICE void stmatrix_x4_trans(uint32_t address, const uint32_t (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r[0]),
                 "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}

// --------------------------------------------------------------------------------------------------------- wgmma

DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int kPending>
DEVICE void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

template <int kRegisters>
DEVICE void wgmma_hold(float (&d)[kRegisters]) {
#pragma unroll
    for (int i = 0; i < kRegisters; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

template <int kRegisters>
DEVICE void wgmma_hold(uint32_t (&a)[kRegisters]) {
#pragma unroll
    for (int i = 0; i < kRegisters; ++i) asm volatile("" : "+r"(a[i])::"memory");
}

// Accumulator lists of inline PTX for N = 32 j: sixteen registers for each 32 columns.
#define WGMMA_D16(i)                                                                                            \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
        "+f"(d[i + 7]), "+f"(d[i + 8]), "+f"(d[i + 9]), "+f"(d[i + 10]), "+f"(d[i + 11]), "+f"(d[i + 12]),      \
        "+f"(d[i + 13]), "+f"(d[i + 14]), "+f"(d[i + 15])
#define WGMMA_D_32 WGMMA_D16(0)
#define WGMMA_D_64 WGMMA_D_32, WGMMA_D16(16)
#define WGMMA_D_96 WGMMA_D_64, WGMMA_D16(32)
#define WGMMA_D_128 WGMMA_D_96, WGMMA_D16(48)
#define WGMMA_D_160 WGMMA_D_128, WGMMA_D16(64)
#define WGMMA_D_192 WGMMA_D_160, WGMMA_D16(80)
#define WGMMA_D_224 WGMMA_D_192, WGMMA_D16(96)
#define WGMMA_D_256 WGMMA_D_224, WGMMA_D16(112)

#define WGMMA_R_32 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define WGMMA_R_64 WGMMA_R_32 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define WGMMA_R_96 WGMMA_R_64 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define WGMMA_R_128 WGMMA_R_96 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define WGMMA_R_160 WGMMA_R_128 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define WGMMA_R_192 WGMMA_R_160 ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define WGMMA_R_224 WGMMA_R_192 ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111"
#define WGMMA_R_256 WGMMA_R_224 ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

#define WGMMA_SS(N, TYPE, a, b, keep, major_a, major_b)                                                              \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #keep ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N             \
                 "k16.f32." TYPE "." TYPE " {" WGMMA_R_##N "}, %" #a ", %" #b ", p, 1, 1, %" #major_a ", %" #major_b \
                                                           ";\n}"                                                    \
                 : WGMMA_D_##N                                                                                       \
                 : "l"(desc_a), "l"(desc_b), "r"(int(accumulate)), "n"(int(kMajorA)), "n"(int(kMajorB)))

#define WGMMA_RS(N, TYPE, a0, a1, a2, a3, b, keep, major_b)                                                    \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #keep ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N       \
                 "k16.f32." TYPE "." TYPE " {" WGMMA_R_##N "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b \
                                                           ", p, 1, 1, %" #major_b ";\n}"                      \
                 : WGMMA_D_##N                                                                                 \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(desc_b), "r"(int(accumulate)), "n"(int(kMajorB)))

// N follows from the accumulators, so there is one overload per N. i0... are the numbers of the operands after the
// accumulators: nvcc knows no names for operands, and no arithmetic on their numbers.
#define WGMMA_SHAPE(N, i0, i1, i2, i3, i4, i5, i6)                                                               \
    static_assert(i0 == N / 2 && i1 == i0 + 1 && i2 == i0 + 2 && i3 == i0 + 3 && i4 == i0 + 4 && i5 == i0 + 5 && \
                  i6 == i0 + 6);                                                                                 \
    template <class Element, Major kMajorA = Major::K, Major kMajorB = Major::K>                                 \
    DEVICE void wgmma_ss(float (&d)[N / 2], uint64_t desc_a, uint64_t desc_b, bool accumulate) {                 \
        if constexpr (std::is_same_v<Element, bf16>) {                                                           \
            WGMMA_SS(N, "bf16", i0, i1, i2, i3, i4);                                                             \
        } else {                                                                                                 \
            WGMMA_SS(N, "f16", i0, i1, i2, i3, i4);                                                              \
        }                                                                                                        \
    }                                                                                                            \
    template <class Element, Major kMajorB = Major::K>                                                           \
    DEVICE void wgmma_rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t desc_b, bool accumulate) {          \
        if constexpr (std::is_same_v<Element, bf16>) {                                                           \
            WGMMA_RS(N, "bf16", i0, i1, i2, i3, i4, i5, i6);                                                     \
        } else {                                                                                                 \
            WGMMA_RS(N, "f16", i0, i1, i2, i3, i4, i5, i6);                                                      \
        }                                                                                                        \
    }

WGMMA_SHAPE(32, 16, 17, 18, 19, 20, 21, 22)
WGMMA_SHAPE(64, 32, 33, 34, 35, 36, 37, 38)
WGMMA_SHAPE(96, 48, 49, 50, 51, 52, 53, 54)
WGMMA_SHAPE(128, 64, 65, 66, 67, 68, 69, 70)
WGMMA_SHAPE(160, 80, 81, 82, 83, 84, 85, 86)
WGMMA_SHAPE(192, 96, 97, 98, 99, 100, 101, 102)
WGMMA_SHAPE(224, 112, 113, 114, 115, 116, 117, 118)
WGMMA_SHAPE(256, 128, 129, 130, 131, 132, 133, 134)

template <int kRegisters>
DEVICE void setmaxnreg_inc() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
DEVICE void setmaxnreg_dec() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace dev
