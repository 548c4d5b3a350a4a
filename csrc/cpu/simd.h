// Vectors of TIVTOK_LANES floats on the compiler's vector extensions, and what the kernels need beyond + - * /.
//
// Included by one translation unit per instruction set, inside an unnamed namespace: nothing here may be shared between
// units that were compiled for different machines, so no function of the standard library is used either.

typedef float Vec __attribute__((vector_size(4 * TIVTOK_LANES)));
typedef int32_t IVec __attribute__((vector_size(4 * TIVTOK_LANES)));
typedef float UnalignedVec __attribute__((vector_size(4 * TIVTOK_LANES), aligned(4), may_alias));
typedef float Quad __attribute__((vector_size(16)));

constexpr int LANES = TIVTOK_LANES;

#define TIVTOK_INLINE inline __attribute__((always_inline))

TIVTOK_INLINE Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
TIVTOK_INLINE void store(float* p, Vec x) { *reinterpret_cast<UnalignedVec*>(p) = x; }

#if TIVTOK_LANES == 4
TIVTOK_INLINE Vec splat(float x) { return Vec{x, x, x, x}; }
#elif TIVTOK_LANES == 8
TIVTOK_INLINE Vec splat(float x) { return Vec{x, x, x, x, x, x, x, x}; }
#else
TIVTOK_INLINE Vec splat(float x) { return Vec{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
#endif

// The larger of both; `x` where it is NaN. GCC does not find the instruction for an AVX-512 select.
TIVTOK_INLINE Vec max(Vec bound, Vec x) {
#if TIVTOK_LANES == 16 && defined(__AVX512F__)
    return _mm512_max_ps(bound, x);
#elif TIVTOK_LANES == 8 && defined(__AVX__)
    return _mm256_max_ps(bound, x);
#elif TIVTOK_LANES == 4 && defined(__SSE__)
    return _mm_max_ps(bound, x);
#else
    return bound > x ? bound : x;
#endif
}

TIVTOK_INLINE Vec select(IVec mask, Vec yes, Vec no) { return (Vec)((mask & (IVec)yes) | (~mask & (IVec)no)); }

TIVTOK_INLINE float sum(Vec x) {
    float parts[LANES], total = 0;
    store(parts, x);
    for (int i = 0; i < LANES; i++) total += parts[i];
    return total;
}

// 2^x for x up to 127, relative error 1.2e-7; below -126 it stays at 2^-126. NaN stays NaN.
// 2^f on [-1/2, 1/2] is a minimax polynomial; adding MAGIC rounds x and leaves the biased exponent in the low bits.
TIVTOK_INLINE Vec exp2(Vec x) {
    const Vec magic = splat(12582912.f + 127.f);
    x = max(splat(-126.f), x);
    const Vec shifted = x + magic;
    const Vec f = x - (shifted - magic);
    Vec p = splat(0x1.5bba12p-10f);
    p = p * f + splat(0x1.3cea88p-7f);
    p = p * f + splat(0x1.c6b752p-5f);
    p = p * f + splat(0x1.ebf9bcp-3f);
    p = p * f + splat(0x1.62e42ap-1f);
    p = p * f + splat(1.f);
    return p * (Vec)((IVec)shifted << 23);
}

// log2 x for normal x > 0, absolute error 2e-7 plus rounding. NaN and infinity stay.
TIVTOK_INLINE Vec log2(Vec x) {
    const IVec bits = (IVec)x - 0x3f3504f3;  // exponent such that the mantissa is in [sqrt(1/2), sqrt(2))
    const IVec exponent = bits >> 23;
    const Vec mantissa = (Vec)((bits & 0x7fffff) + 0x3f3504f3);
    const Vec s = (mantissa - 1.f) / (mantissa + 1.f), s2 = s * s;
    Vec p = splat(2.8853900818f / 9);
    p = p * s2 + splat(2.8853900818f / 7);
    p = p * s2 + splat(2.8853900818f / 5);
    p = p * s2 + splat(2.8853900818f / 3);
    p = p * s2 + splat(2.8853900818f);
    return select(x < splat(__builtin_inff()), p * s + __builtin_convertvector(exponent, Vec), x);
}

// A vector of LANES / 4 quads, and back.
#if TIVTOK_LANES == 4
TIVTOK_INLINE Vec join(const Quad (&q)[1]) { return q[0]; }
#elif TIVTOK_LANES == 8 && defined(__AVX__)
TIVTOK_INLINE Vec join(const Quad (&q)[2]) { return _mm256_insertf128_ps(_mm256_castps128_ps256(q[0]), q[1], 1); }
#else
TIVTOK_INLINE Vec join(const Quad (&q)[LANES / 4]) {
    Vec x;
    __builtin_memcpy(&x, q, sizeof x);
    return x;
}
#endif

TIVTOK_INLINE void split(Vec x, Quad (&q)[LANES / 4]) { __builtin_memcpy(q, &x, sizeof x); }

// Four columns of 4 x 4 blocks, LANES / 4 of them side by side, each transposed in place.
TIVTOK_INLINE void transpose_quads(Vec (&x)[4]) {
#if TIVTOK_LANES == 4
#define TIVTOK_LOW 0, 4, 1, 5
#define TIVTOK_HIGH 2, 6, 3, 7
#define TIVTOK_LOW_PAIR 0, 1, 4, 5
#define TIVTOK_HIGH_PAIR 2, 3, 6, 7
#elif TIVTOK_LANES == 8
#define TIVTOK_LOW 0, 8, 1, 9, 4, 12, 5, 13
#define TIVTOK_HIGH 2, 10, 3, 11, 6, 14, 7, 15
#define TIVTOK_LOW_PAIR 0, 1, 8, 9, 4, 5, 12, 13
#define TIVTOK_HIGH_PAIR 2, 3, 10, 11, 6, 7, 14, 15
#else
#define TIVTOK_LOW 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29
#define TIVTOK_HIGH 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31
#define TIVTOK_LOW_PAIR 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define TIVTOK_HIGH_PAIR 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#endif
#if defined(__clang__)
#define TIVTOK_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define TIVTOK_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (IVec){__VA_ARGS__})
#endif
    const Vec a = TIVTOK_SHUFFLE(x[0], x[1], TIVTOK_LOW), b = TIVTOK_SHUFFLE(x[0], x[1], TIVTOK_HIGH);
    const Vec c = TIVTOK_SHUFFLE(x[2], x[3], TIVTOK_LOW), d = TIVTOK_SHUFFLE(x[2], x[3], TIVTOK_HIGH);
    x[0] = TIVTOK_SHUFFLE(a, c, TIVTOK_LOW_PAIR), x[1] = TIVTOK_SHUFFLE(a, c, TIVTOK_HIGH_PAIR);
    x[2] = TIVTOK_SHUFFLE(b, d, TIVTOK_LOW_PAIR), x[3] = TIVTOK_SHUFFLE(b, d, TIVTOK_HIGH_PAIR);
}
