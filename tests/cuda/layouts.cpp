// Where the Hopper kernels keep elements, and what they tell wgmma of it: asked by test_layouts.py.
#include "backward/hopper/kernel.h"
#include "forward/hopper/consumer.h"

using C = hopper::GradientPairOf<dev::bf16, 128>::Queries;
constexpr int kRows = 64;

extern "C" {
// Byte of an element in a matrix of 64 rows and 128 columns.
uint32_t place(int row, int column) { return C::at<kRows>(row, column) + column % 8 * 2; }

// Descriptors of its part from a column, or from a row, on: in the backward, and in the forward.
uint64_t columns_summed(uint32_t address, int column) {
    return dev::wgmma_advanced(hopper::columns_summed(address), hopper::column_offset<C, kRows>(column));
}
uint64_t rows_summed(uint32_t address, int row) {
    return dev::wgmma_advanced(hopper::rows_summed<C, kRows>(address), row * 128);
}
uint64_t forward_columns(uint32_t address, int column) {
    return dev::wgmma_advanced(hopper::tile_descriptor(address, 0),
                               column / 64 * C::kPanelBytes<kRows> + column % 64 * 2);
}
uint64_t forward_rows(uint32_t address, int row) {
    return dev::wgmma_advanced(hopper::tile_descriptor(address, C::kPanelBytes<kRows>), row * hopper::kPanelRowBytes);
}

// Accumulators of 64 x 64 by number, 32 per thread, as the left operand of four products.
void packed(uint32_t* registers) {
    float sums[32];
    uint32_t operand[4][4];
    for (int i = 0; i < 32; ++i) sums[i] = i;
    dev::pack_operand<dev::bf16>(operand, sums);
    for (int i = 0; i < 16; ++i) registers[i] = operand[i / 4][i % 4];
}
}
