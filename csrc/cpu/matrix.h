// Tile registers: eight tiles of 16 rows of 64 bytes, and the product of two tiles of bfloat16. On AMX or, so that the
// kernels can be tested on any machine, as loops.

constexpr int64_t TILE = 16;              // rows of a tile, and float32 columns
constexpr int64_t TILE_DEPTH = 2 * TILE;  // what a product sums over: bfloat16 columns of its left tile
constexpr int64_t TILE_FLOATS = TILE * TILE;

#if defined(__AMX_BF16__)
// While it lives all eight tiles are of full size. What was configured before, by a library that keeps its
// configuration between calls, is restored; the contents of tiles never outlive a call.
class TileRegisters {
  public:
    TileRegisters() {
        struct {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {TILE, TILE, TILE, TILE, TILE, TILE, TILE, TILE};
        } configuration;
        static_assert(sizeof configuration == sizeof before_);
        asm volatile("sttilecfg %0" : "=m"(before_));
        asm volatile("ldtilecfg %0" ::"m"(configuration));
    }
    ~TileRegisters() {
        if (before_[0])
            asm volatile("ldtilecfg %0" ::"m"(before_));
        else
            asm volatile("tilerelease");
    }
    TileRegisters(const TileRegisters&) = delete;

  private:
    char before_[64];
};

template <int T>
TIVTOK_INLINE void clear_tile() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
}
// Rows are `stride` bytes apart.
template <int T>
TIVTOK_INLINE void load_tile(const float* p, int64_t stride = 64) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(T) : "memory");
}
template <int T>
TIVTOK_INLINE void store_tile(float* p, int64_t stride = 64) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(T) : "memory");
}
// C (16, 16) float32 += A (16, 32) bfloat16 times B (32, 16) bfloat16, of which neighbours along the sum lie together:
// (16 pairs, 16 columns).
template <int C, int A, int B>
TIVTOK_INLINE void multiply_tiles() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}
#else
struct TileRegisters {
    TileRegisters() {}
};

thread_local float tile_registers[8][TILE_FLOATS];

template <int T>
void clear_tile() {
    __builtin_memset(tile_registers[T], 0, sizeof tile_registers[T]);
}
template <int T>
void load_tile(const float* p, int64_t stride = 64) {
    for (int64_t r = 0; r < TILE; r++) __builtin_memcpy(tile_registers[T] + r * TILE, p + r * stride / 4, 64);
}
template <int T>
void store_tile(float* p, int64_t stride = 64) {
    for (int64_t r = 0; r < TILE; r++) __builtin_memcpy(p + r * stride / 4, tile_registers[T] + r * TILE, 64);
}
template <int C, int A, int B>
void multiply_tiles() {
    const auto number = [](const float* tile, int64_t at) {
        uint16_t half;
        __builtin_memcpy(&half, reinterpret_cast<const char*>(tile) + 2 * at, sizeof half);
        const uint32_t bits = static_cast<uint32_t>(half) << 16;
        float x;
        __builtin_memcpy(&x, &bits, sizeof x);
        return x;
    };
    for (int64_t m = 0; m < TILE; m++)
        for (int64_t n = 0; n < TILE; n++)
            for (int64_t d = 0; d < TILE_DEPTH; d++)
                tile_registers[C][m * TILE + n] += number(tile_registers[A], m * TILE_DEPTH + d) *
                                                   number(tile_registers[B], (d / 2 * TILE + n) * 2 + d % 2);
}
#endif
