// The three products, each a loop over register tiles.
//
// Query rows lie in lanes, WIDTH of them in a group of up to VECTORS vectors: softmax then runs down the keys without
// a horizontal step, and keys and values are read one number at a time, so they need no transposing. Keys, values and
// rows are packed in panels of 16 columns, one cache line per row: (columns / 16, capacity, 16).

constexpr int VECTORS = 3;
constexpr int WIDTH = VECTORS * LANES;

// Accumulators fill the registers but for one row of vectors and a broadcast: 3 x 4 (outer: 2 x 6) of 16 registers,
// 3 x 8 (2 x 12) of 32.
constexpr int ROWS = TIVTOK_REGISTERS == 32 ? 8 : 4;
constexpr int OUTER_VECTORS = 2;
constexpr int OUTER_ROWS = TIVTOK_REGISTERS == 32 ? 12 : 6;

// Packed rows.
struct Panels {
    float* data;
    int64_t capacity;

    TIVTOK_INLINE float* at(int64_t row, int64_t column) const {
        return data + column / PANEL * capacity * PANEL + row * PANEL + column % PANEL;
    }
};

template <int R, int V>
struct Tile {
    Vec x[R][V];

    TIVTOK_INLINE void clear() {
#pragma GCC unroll 12
        for (int r = 0; r < R; r++)
#pragma GCC unroll 3
            for (int v = 0; v < V; v++) x[r][v] = Vec{};
    }
    // Adds the product of R numbers, `stride` apart, and V vectors.
    template <int STRIDE>
    TIVTOK_INLINE void add(const float* numbers, const Vec (&vectors)[V]) {
#pragma GCC unroll 12
        for (int r = 0; r < R; r++) {
            const Vec number = splat(numbers[r * STRIDE]);
#pragma GCC unroll 3
            for (int v = 0; v < V; v++) x[r][v] += number * vectors[v];
        }
    }
};

template <int V>
TIVTOK_INLINE void load_vectors(const float* p, Vec (&x)[V]) {
#pragma GCC unroll 3
    for (int v = 0; v < V; v++) x[v] = load(p + v * LANES);
}

// R rows of keys times all columns of a transposed group of queries: (R, V * LANES) dot products.
template <int R, int V>
TIVTOK_INLINE void dot(Tile<R, V>& tile, const float* transposed, const float* keys, int64_t panel, int64_t columns) {
    tile.clear();
    for (int64_t c = 0; c < columns; c += PANEL, keys += panel) {
#pragma GCC unroll 4
        for (int d = 0; d < PANEL; d++, transposed += WIDTH) {
            Vec x[V];
            load_vectors(transposed, x);
            tile.template add<PANEL>(keys + d, x);
        }
    }
}

// Weights (count, WIDTH) times R columns of packed rows: adds to (R, V * LANES) sums over the rows.
template <int R, int V>
TIVTOK_INLINE void mix(Tile<R, V>& tile, const float* weights, const float* column, int64_t count) {
#pragma GCC unroll 2
    for (int64_t k = 0; k < count; k++) {
        Vec x[V];
        load_vectors(weights + k * WIDTH, x);
        tile.template add<1>(column + k * PANEL, x);
    }
}

// Calls body(row, constant R) for rows [first, end) in steps of R, then once for what is left.
template <int R, class Body>
TIVTOK_INLINE void remainder(int64_t row, int64_t left, const Body& body) {
    if constexpr (R > 0) {
        if (left == R)
            body(row, std::integral_constant<int, R>{});
        else
            remainder<R - 1>(row, left, body);
    }
}

template <int R, class Body>
TIVTOK_INLINE void in_steps(int64_t first, int64_t end, const Body& body) {
    for (; first + R <= end; first += R) body(first, std::integral_constant<int, R>{});
    remainder<R - 1>(first, end - first, body);
}

// How rows are divided into groups of lanes: three vectors each, the last ones two rather than one.
struct Groups {
    int64_t vectors, count;

    explicit Groups(int64_t rows) : vectors((rows + LANES - 1) / LANES), count((vectors + VECTORS - 1) / VECTORS) {}

    // The first of a group's vectors; group `count` is the end.
    int64_t first_vector(int64_t group) const {
        const int64_t missing = count * VECTORS - vectors;  // 0 to 2 groups have a vector less
        if (count == 1) return group * vectors;
        const int64_t full = count - missing;
        return group * VECTORS - (group > full ? group - full : 0);
    }
    int64_t first_row(int64_t group) const { return first_vector(group) * LANES; }
    int num_vectors(int64_t group) const { return static_cast<int>(first_vector(group + 1) - first_vector(group)); }
};

// Calls body(constant V) for the number of vectors of a group.
template <class Body>
TIVTOK_INLINE void for_vectors(int vectors, const Body& body) {
    if (vectors == 3)
        body(std::integral_constant<int, 3>{});
    else if (vectors == 2)
        body(std::integral_constant<int, 2>{});
    else
        body(std::integral_constant<int, 1>{});
}
