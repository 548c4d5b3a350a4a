// Keys, values and query rows packed as tiles of bfloat16. What a product sums over lies along the rows of its left
// tile and, two numbers in each place, down its right one.

constexpr int64_t BLOCK_KEYS = 256;
constexpr int64_t KEY_STEP = TILE_DEPTH;  // ranges of keys begin at multiples: no tile of values holds two of them

constexpr int64_t tiles_of(int64_t rows) { return (rows + TILE - 1) / TILE; }
constexpr int64_t depth_tiles(int64_t columns) { return (columns + TILE_DEPTH - 1) / TILE_DEPTH; }

// 16 x 16 numbers of four bytes, transposed.
TIVTOK_INLINE void transpose_tile(Vec (&x)[TILE]) {
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) {
        Vec quad[4] = {x[4 * g], x[4 * g + 1], x[4 * g + 2], x[4 * g + 3]};
        transpose_quads(quad);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) x[4 * g + i] = quad[i];
    }
#define TIVTOK_FIRST 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define TIVTOK_LAST 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#define TIVTOK_EVEN 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27
#define TIVTOK_ODD 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31
    Vec y[TILE];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const Vec a = TIVTOK_SHUFFLE(x[i], x[4 + i], TIVTOK_FIRST), b = TIVTOK_SHUFFLE(x[i], x[4 + i], TIVTOK_LAST);
        const Vec c = TIVTOK_SHUFFLE(x[8 + i], x[12 + i], TIVTOK_FIRST);
        const Vec d = TIVTOK_SHUFFLE(x[8 + i], x[12 + i], TIVTOK_LAST);
        y[i] = TIVTOK_SHUFFLE(a, c, TIVTOK_EVEN), y[4 + i] = TIVTOK_SHUFFLE(a, c, TIVTOK_ODD);
        y[8 + i] = TIVTOK_SHUFFLE(b, d, TIVTOK_EVEN), y[12 + i] = TIVTOK_SHUFFLE(b, d, TIVTOK_ODD);
    }
#pragma GCC unroll 16
    for (int i = 0; i < TILE; i++) x[i] = y[i];
}

// Up to `count` rows of up to `columns` numbers, zeros in the place of all others.
template <int R, int C>
struct Edge {
    BFloat16 rows[R][C];

    Edge(const BFloat16* from, int64_t stride, int64_t count, int64_t columns) : rows{} {
        const int64_t width = columns < C ? columns : C;
        for (int64_t r = 0; r < R && r < count && width > 0; r++)
            __builtin_memcpy(rows[r], from + r * stride, width * sizeof(BFloat16));
    }
};

// 16 rows of 32 numbers -> the right tile of a product that sums over the columns.
TIVTOK_INLINE void pack_transposed(const BFloat16* rows, int64_t stride, float* to) {
    Vec x[TILE];
#pragma GCC unroll 16
    for (int r = 0; r < TILE; r++) __builtin_memcpy(&x[r], rows + r * stride, sizeof x[r]);
    transpose_tile(x);
#pragma GCC unroll 16
    for (int r = 0; r < TILE; r++) store(to + r * TILE, x[r]);
}

// 32 rows of 16 numbers -> the right tile of a product that sums over the rows, paired as `round_pairs` does.
TIVTOK_INLINE void pack_pairs(const BFloat16* rows, int64_t stride, float* to) {
    typedef Lanes<Vec>::Bits Bits;
    for (int r = 0; r < TILE; r++, rows += stride) {
        Lanes<Vec>::Halves first, second;
        __builtin_memcpy(&first, rows, sizeof first);
        __builtin_memcpy(&second, rows + TILE * stride, sizeof second);
        store(to + r * TILE, (Vec)(__builtin_convertvector(first, Bits) | __builtin_convertvector(second, Bits) << 16));
    }
}

// 16 rows of 32 numbers -> a left tile, signs flipped where `flip` has a bit.
TIVTOK_INLINE void pack_rows_as_tile(const BFloat16* rows, int64_t stride, IVec flip, float* to) {
#pragma GCC unroll 16
    for (int r = 0; r < TILE; r++) {
        IVec x;
        __builtin_memcpy(&x, rows + r * stride, sizeof x);
        store(to + r * TILE, (Vec)(x ^ flip));
    }
}

// Packed keys and values of a head. `held` keys at its start may be followed by a gap up to the next KEY_STEP.
struct KeyBlock {
    float *keys, *values;
    int64_t columns, held;

    static int64_t size(int64_t columns) {
        return BLOCK_KEYS / TILE_DEPTH * (2 * depth_tiles(columns) + columns / TILE) * TILE_FLOATS;
    }

    KeyBlock(float* p, int64_t columns, int64_t held)
        : keys(p), values(p + BLOCK_KEYS / TILE * depth_tiles(columns) * TILE_FLOATS), columns(columns), held(held) {}

    // 16 keys from `key` on, their columns [32 depth, 32 depth + 32).
    float* key_tile(int64_t key, int64_t depth) const {
        return keys + (key / TILE * depth_tiles(columns) + depth) * TILE_FLOATS;
    }
    // 32 values from `key` on, 16 columns of them.
    float* value_tile(int64_t key, int64_t column) const {
        return values + (key / TILE_DEPTH * (columns / TILE) + column / TILE) * TILE_FLOATS;
    }

    // Rows [first, first + count) of a head become keys from `key` on, and zeros up to the next KEY_STEP.
    void pack(const Shape& shape, const Tensor& k, const Tensor& v, int64_t head, int64_t first, int64_t count,
              int64_t key) const {
        const BFloat16* from = row_of<BFloat16>(k, first, head);
        for (int64_t i = 0; i < round_up(count, KEY_STEP); i += TILE, from += TILE * k.row)
            for (int64_t c = 0; c < shape.head_dim; c += TILE_DEPTH) {
                float* const to = key_tile(key + i, c / TILE_DEPTH);
                if (count - i >= TILE && shape.head_dim - c >= TILE_DEPTH)
                    pack_transposed(from + c, k.row, to);
                else
                    pack_transposed(Edge<TILE, TILE_DEPTH>(from + c, k.row, count - i, shape.head_dim - c).rows[0],
                                    TILE_DEPTH, to);
            }
        from = row_of<BFloat16>(v, first, head);
        for (int64_t i = 0; i < count; i += TILE_DEPTH, from += TILE_DEPTH * v.row)
            for (int64_t c = 0; c < shape.head_dim; c += TILE) {
                float* const to = value_tile(key + i, c);
                if (count - i >= TILE_DEPTH && shape.head_dim - c >= TILE)
                    pack_pairs(from + c, v.row, to);
                else
                    pack_pairs(Edge<TILE_DEPTH, TILE>(from + c, v.row, count - i, shape.head_dim - c).rows[0], TILE,
                               to);
            }
    }
};
