// Rows between tensors and the packed forms: any element type outside, float32 in panels or transposed groups inside.

struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

TIVTOK_INLINE float as_float(uint32_t bits) {
    float x;
    __builtin_memcpy(&x, &bits, 4);
    return x;
}
TIVTOK_INLINE uint32_t as_bits(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    return bits;
}

TIVTOK_INLINE float widen(float x) { return x; }
TIVTOK_INLINE float widen(BFloat16 x) { return as_float(uint32_t(x.bits) << 16); }
TIVTOK_INLINE float widen(Float16 x) {
    const uint32_t rebias = 112u << 23, magnitude = uint32_t(x.bits & 0x7fff) << 13;
    const uint32_t normal = magnitude + (magnitude >= 0x7c00u << 13 ? 2 * rebias : rebias);  // infinity and NaN stay
    const float tiny = as_float(magnitude + rebias + (1u << 23)) - as_float(rebias + (1u << 23));
    const uint32_t bits = magnitude < 1u << 23 ? as_bits(tiny) : normal;
    return as_float(bits | uint32_t(x.bits & 0x8000) << 16);
}

// To nearest, ties to even; NaN stays NaN.
TIVTOK_INLINE void narrow(float x, float& to) { to = x; }
TIVTOK_INLINE void narrow(float x, BFloat16& to) {
    const uint32_t bits = as_bits(x);
    const uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
    to.bits = uint16_t(((bits & 0x7fffffff) > 0x7f800000 ? bits | 0x400000 : rounded) >> 16);
}
TIVTOK_INLINE void narrow(float x, Float16& to) {
    const uint32_t bits = as_bits(x), magnitude = bits & 0x7fffffff;
    const uint32_t tiny = as_bits(as_float(magnitude) + 0.5f) - as_bits(0.5f);  // half of 2^-24, its last place
    const uint32_t normal = (magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13;
    uint32_t half = magnitude < 113u << 23 ? tiny : normal;
    if (magnitude >= 0x477ff000) half = 0x7c00;  // from 65520 on
    if (magnitude > 0x7f800000) half = 0x7e00;
    to.bits = uint16_t(half | (bits >> 16 & 0x8000));
}

// Calls body with a null pointer to the element type.
template <class Body>
TIVTOK_INLINE void for_type(ElementType type, const Body& body) {
    if (type == ElementType::fp32)
        body(static_cast<float*>(nullptr));
    else if (type == ElementType::bf16)
        body(static_cast<BFloat16*>(nullptr));
    else
        body(static_cast<Float16*>(nullptr));
}

TIVTOK_INLINE void copy_floats(float* to, const float* from, int64_t count) {
    for (int64_t i = 0; i < count; i++) to[i] = from[i];
}
TIVTOK_INLINE void clear_floats(float* to, int64_t count) { __builtin_memset(to, 0, count * sizeof(float)); }

// Rows [first, first + count) of a head -> packed rows from `row` on. Columns past head_dim become zero.
template <class T>
void pack(const Tensor& x, int64_t head, int64_t head_dim, int64_t first, int64_t count, const Panels& to,
          int64_t row) {
    const T* source = static_cast<const T*>(x.data) + first * x.row + head * x.head;
    for (int64_t i = 0; i < count; i++, source += x.row) {
        int64_t c = 0;
        for (; c + PANEL <= head_dim; c += PANEL) {
            float* line = to.at(row + i, c);
            for (int j = 0; j < PANEL; j++) line[j] = widen(source[c + j]);
        }
        if (c < head_dim) {
            float* line = to.at(row + i, c);
            for (int j = 0; j < PANEL; j++) line[j] = c + j < head_dim ? widen(source[c + j]) : 0.f;
        }
    }
}

TIVTOK_INLINE void pack_rows(const Shape& shape, const Tensor& x, int64_t head, int64_t first, int64_t count,
                             const Panels& to, int64_t row) {
    for_type(shape.type, [&](auto* type) {
        pack<std::remove_pointer_t<decltype(type)>>(x, head, shape.head_dim, first, count, to, row);
    });
}

// Packed rows [row, row + V * LANES) -> (columns, WIDTH), times a factor. Rows past `count` become zero.
template <int V>
void transpose_in(const Panels& from, int64_t row, int64_t count, int64_t columns, float factor, float* to) {
    for (int64_t c = 0; c < columns; c += 4) {
        for (int v = 0; v < V; v++) {
            Vec x[4];
            for (int i = 0; i < 4; i++) {
                Quad quads[LANES / 4];
                for (int j = 0; j < LANES / 4; j++) {
                    const int64_t r = v * LANES + j * 4 + i;
                    quads[j] = r < count ? load_quad(from.at(row + r, c)) : Quad{};
                }
                x[i] = join(quads);
            }
            transpose_quads(x);
            for (int i = 0; i < 4; i++) store(to + (c + i) * WIDTH + v * LANES, x[i] * factor);
        }
    }
}

// (columns, WIDTH) times a factor per lane -> `count` rows of `columns` floats.
template <int V>
void transpose_out(const float* from, const Vec (&factor)[V], int64_t count, int64_t columns, float* to) {
    for (int64_t c = 0; c < columns; c += 4) {
        for (int v = 0; v < V; v++) {
            Vec x[4];
            for (int i = 0; i < 4; i++) x[i] = load(from + (c + i) * WIDTH + v * LANES) * factor[v];
            transpose_quads(x);
            for (int i = 0; i < 4; i++) {
                Quad quads[LANES / 4];
                split(x[i], quads);
                for (int j = 0; j < LANES / 4; j++) {
                    const int64_t r = v * LANES + j * 4 + i;
                    if (r < count) store_quad(to + r * columns + c, quads[j]);
                }
            }
        }
    }
}

// `count` floats, in steps of `panel` after every PANEL of them, times a factor -> one row of a contiguous tensor
// (rows, heads, head_dim).
TIVTOK_INLINE void write_row(const Shape& shape, int64_t heads, void* tensor, int64_t row, int64_t head,
                             const float* from, int64_t panel, float factor) {
    for_type(shape.type, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        T* to = static_cast<T*>(tensor) + (row * heads + head) * shape.head_dim;
        int64_t c = 0;
        for (; c + PANEL <= shape.head_dim; c += PANEL, from += panel)
            for (int j = 0; j < PANEL; j++) narrow(from[j] * factor, to[c + j]);
        for (int j = 0; c + j < shape.head_dim; j++) narrow(from[j] * factor, to[c + j]);
    });
}
