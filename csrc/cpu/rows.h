// Rows between tensors and the packed forms: any element type outside, float32 in panels or transposed groups inside.

struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

// Unsigned lanes beside a vector of floats.
template <class Floats>
struct Lanes;
template <>
struct Lanes<Quad> {
    typedef uint32_t Bits __attribute__((vector_size(16)));
    typedef uint16_t Halves __attribute__((vector_size(8)));
};
#if TIVTOK_LANES > 4
template <>
struct Lanes<Vec> {
    typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));
    typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
};
#endif

template <class Bits>
TIVTOK_INLINE Bits choose(Bits mask, Bits yes, Bits no) {
    return (mask & yes) | (~mask & no);
}

// As many neighbours as Floats has lanes, widened.
template <class Floats>
TIVTOK_INLINE Floats widen(const float* p) {
    Floats x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
}
template <class Floats>
TIVTOK_INLINE Floats widen(const BFloat16* p) {
    typename Lanes<Floats>::Halves x;
    __builtin_memcpy(&x, p, sizeof x);
    return (Floats)(__builtin_convertvector(x, typename Lanes<Floats>::Bits) << 16);
}
template <class Floats>
TIVTOK_INLINE Floats widen(const Float16* p) {
    typedef typename Lanes<Floats>::Bits Bits;
    typename Lanes<Floats>::Halves x;
    __builtin_memcpy(&x, p, sizeof x);
    const Bits wide = __builtin_convertvector(x, Bits), magnitude = (wide & 0x7fff) << 13;
    const uint32_t rebias = 112u << 23;
    const Bits large = (Bits)(magnitude >= 0x7c00u << 13);  // infinity and NaN stay
    const Bits normal = magnitude + rebias + (large & rebias);
    const Bits tiny = (Bits)((Floats)(magnitude + rebias + (1u << 23)) - (Floats)(Bits{} + rebias + (1u << 23)));
    return (Floats)(choose((Bits)(magnitude < 1u << 23), tiny, normal) | (wide & 0x8000) << 16);
}

// To nearest, ties to even; NaN stays NaN.
template <class Floats>
TIVTOK_INLINE void narrow(Floats x, float* to) {
    __builtin_memcpy(to, &x, sizeof x);
}
template <class Floats>
TIVTOK_INLINE void narrow(Floats x, BFloat16* to) {
    typedef typename Lanes<Floats>::Bits Bits;
    const Bits bits = (Bits)x, rounded = bits + 0x7fff + (bits >> 16 & 1);
    const Bits result = choose((Bits)((bits & 0x7fffffff) > 0x7f800000), bits | 0x400000, rounded) >> 16;
    const auto halves = __builtin_convertvector(result, typename Lanes<Floats>::Halves);
    __builtin_memcpy(to, &halves, sizeof halves);
}
template <class Floats>
TIVTOK_INLINE void narrow(Floats x, Float16* to) {
    typedef typename Lanes<Floats>::Bits Bits;
    const Bits bits = (Bits)x, magnitude = bits & 0x7fffffff;
    const Bits tiny = (Bits)((Floats)magnitude + 0.5f) - 0x3f000000;  // half of 2^-24, its last place, is 0.5's
    const Bits normal = (magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13;
    Bits half = choose((Bits)(magnitude < 113u << 23), tiny, normal);
    half = choose((Bits)(magnitude >= 0x477ff000), Bits{} + 0x7c00, half);  // from 65520 on
    half = choose((Bits)(magnitude > 0x7f800000), Bits{} + 0x7e00, half);
    const auto halves = __builtin_convertvector(half | (bits >> 16 & 0x8000), typename Lanes<Floats>::Halves);
    __builtin_memcpy(to, &halves, sizeof halves);
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

TIVTOK_INLINE void clear_floats(float* to, int64_t count) { __builtin_memset(to, 0, count * sizeof(float)); }

// A panel of a row from `from` on. Columns past the last become zero.
template <class T>
TIVTOK_INLINE void widen_panel(const T* from, int64_t columns, float* to) {
    if (columns >= PANEL) {
#pragma GCC unroll 4
        for (int j = 0; j < PANEL; j += LANES) store(to + j, widen<Vec>(from + j));
    } else {
        T rest[PANEL] = {};
        __builtin_memcpy(rest, from, columns * sizeof(T));
        widen_panel(rest, PANEL, to);
    }
}

// A panel times a factor. Columns past the last are not written.
template <class T>
TIVTOK_INLINE void narrow_panel(const float* from, float factor, int64_t columns, T* to) {
    if (columns >= PANEL) {
#pragma GCC unroll 4
        for (int j = 0; j < PANEL; j += LANES) narrow(load(from + j) * factor, to + j);
    } else {
        T rest[PANEL];
        narrow_panel(from, factor, PANEL, rest);
        __builtin_memcpy(to, rest, columns * sizeof(T));
    }
}

template <class T>
TIVTOK_INLINE const T* row_of(const Tensor& x, int64_t row, int64_t head) {
    return static_cast<const T*>(x.data) + row * x.row + head * x.head;
}

TIVTOK_INLINE Tensor contiguous(const void* data, int64_t heads, const Shape& shape) {
    return {data, heads * shape.head_dim, shape.head_dim};
}

// Rows that will be read or written next. Every tile of scores asks for the cache lines of a row of each tensor.
class Ahead {
  public:
    explicit Ahead(const Shape& shape)
        : size_(shape.type == ElementType::fp32 ? 4 : 2), bytes_(shape.head_dim * size_) {}

    // Lines that are asked for too early are gone when they are needed: begins after `wait` tiles.
    void start(int64_t wait) { tensors_ = 0, wait_ = wait; }
    void add(const Tensor& x, int64_t head, int64_t row, int64_t rows) {
        next_[tensors_] = static_cast<const char*>(x.data) + (row * x.row + head * x.head) * size_;
        stride_[tensors_] = x.row * size_;
        rows_[tensors_++] = rows;
    }
    TIVTOK_INLINE void ask() {
        if (wait_-- > 0) return;
        for (int i = 0; i < tensors_; i++) {
            if (rows_[i]-- <= 0) continue;
            for (int64_t b = 0; b < bytes_; b += 64) __builtin_prefetch(next_[i] + b, 0, 2);
            next_[i] += stride_[i];
        }
    }

  private:
    int64_t size_, bytes_, wait_ = 0;
    int tensors_ = 0;
    const char* next_[8];
    int64_t stride_[8], rows_[8];
};

// Rows [first, first + count) of a head -> packed rows from `row` on. Columns past head_dim become zero.
TIVTOK_INLINE void pack_rows(const Shape& shape, const Tensor& x, int64_t head, int64_t first, int64_t count,
                             const Panels& to, int64_t row) {
    for_type(shape.type, [&](auto* type) {
        auto* source = row_of<std::remove_pointer_t<decltype(type)>>(x, first, head);
        for (int64_t i = 0; i < count; i++, source += x.row) {
            float* line = to.at(row + i, 0);
            for (int64_t c = 0; c < shape.head_dim; c += PANEL, line += to.capacity * PANEL)
                widen_panel(source + c, shape.head_dim - c, line);
        }
    });
}

// `columns` floats, in steps of `panel` after every PANEL of them, times a factor -> one row of a contiguous tensor
// (rows, heads, head_dim).
TIVTOK_INLINE void write_row(const Shape& shape, int64_t heads, void* tensor, int64_t row, int64_t head,
                             const float* from, int64_t panel, float factor) {
    for_type(shape.type, [&](auto* type) {
        auto* to = static_cast<decltype(type)>(tensor) + (row * heads + head) * shape.head_dim;
        for (int64_t c = 0; c < shape.head_dim; c += PANEL, from += panel)
            narrow_panel(from, factor, shape.head_dim - c, to + c);
    });
}

// Four columns of LANES rows, `stride` apart, zeros in the place of rows and columns past the last.
template <class T>
TIVTOK_INLINE void copy_edge(const T* from, int64_t stride, int64_t count, int64_t columns, T (&to)[LANES][4]) {
    const int64_t width = columns > 4 ? 4 : columns > 0 ? columns : 0;
    for (int64_t r = 0; r < LANES; r++)
        for (int64_t c = 0; c < 4; c++) to[r][c] = r < count && c < width ? from[r * stride + c] : T{};
}

// Rows, `stride` apart, of `columns` elements -> (columns rounded up to PANEL, WIDTH), times a factor. Rows past
// `count` and columns past the last become zero.
template <int V, class T>
void transpose_in(const T* rows, int64_t stride, int64_t count, int64_t columns, float factor, float* to) {
    for (int v = 0; v < V; v++, rows += LANES * stride, count -= LANES, to += LANES)
        for (int64_t c = 0; c < round_up(columns, PANEL); c += 4) {
            T edge[LANES][4];
            const bool whole = count >= LANES && c + 4 <= columns;
            if (!whole) copy_edge(rows + c, stride, count, columns - c, edge);
            const T* const from = whole ? rows + c : edge[0];
            const int64_t step = whole ? stride : 4;
            Vec x[4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                Quad quads[LANES / 4];
#pragma GCC unroll 4
                for (int j = 0; j < LANES / 4; j++) quads[j] = widen<Quad>(from + (j * 4 + i) * step);
                x[i] = join(quads);
            }
            transpose_quads(x);
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) store(to + (c + i) * WIDTH, x[i] * factor);
        }
}

// (columns, WIDTH) times a factor per lane -> `count` rows, `stride` apart, of `columns` elements.
template <int V, class T>
void transpose_out(const float* from, const Vec (&factor)[V], int64_t count, int64_t columns, T* rows, int64_t stride) {
    for (int v = 0; v < V; v++, rows += LANES * stride, count -= LANES, from += LANES)
        for (int64_t c = 0; c < columns; c += 4) {
            T edge[LANES][4];
            const bool whole = count >= LANES && c + 4 <= columns;
            T* const to = whole ? rows + c : edge[0];
            const int64_t step = whole ? stride : 4;
            Vec x[4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) x[i] = load(from + (c + i) * WIDTH) * factor[v];
            transpose_quads(x);
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                Quad quads[LANES / 4];
                split(x[i], quads);
#pragma GCC unroll 4
                for (int j = 0; j < LANES / 4; j++) narrow(quads[j], to + (j * 4 + i) * step);
            }
            if (whole) continue;
            for (int64_t r = 0; r < LANES && r < count; r++)
                for (int64_t i = 0; i < 4 && c + i < columns; i++) rows[r * stride + c + i] = edge[r][i];
        }
}
