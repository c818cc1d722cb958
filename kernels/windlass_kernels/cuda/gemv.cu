// y = x W^T for up to eight tokens and a quantised W: the product of a decode step.
//
// A block takes 16 rows and splits the columns over its eight warps; sums meet in shared memory in a fixed order, so
// there is no second launch, no atomic and no workspace, and a result does not depend on the batch.
// Traffic: N K (8 bits) or N K / 2 + 2 N K / group (4 bits) bytes once, plus x from the second-level cache per block.
// Not yet measured on a GPU.
#include "product.cuh"

template <class Format>
WINDLASS_DEVICE void multiply(const half_bits* x, const unsigned char* codes, const typename Format::Scale* scales, int tokens, int rows,
                              int columns, int group, half_bits* y) {
    WINDLASS_SHARED(shared);
    const Lane lane;
    const int row = static_cast<int>(blockIdx.x) * kStripRows, thread = static_cast<int>(threadIdx.x);
    const Strip<Format> strip(codes, scales, row, rows, columns, group, lane);
    float sum[4] = {};
    multiply_strip(sum, strip, x, tokens, columns, group, thread / kWarp, kProductWarps, lane);
    if constexpr (!Strip<Format>::kGrouped) strip.apply_scales(sum, 0);
    const float total = add_warps(sum, reinterpret_cast<float*>(shared), lane);
    const int token = thread / kStripRows, target = row + thread % kStripRows;
    if (token < tokens && target < rows) y[static_cast<long long>(token) * rows + target] = to_half(total);
}

WINDLASS_KERNEL(kProductThreads, 2)
windlass_gemv_int8(const half_bits* x, const unsigned char* codes, const float* scales, int tokens, int rows, int columns, half_bits* y) {
    multiply<Int8>(x, codes, scales, tokens, rows, columns, columns, y);
}
WINDLASS_KERNEL(kProductThreads, 2)
windlass_gemv_int4_g32(const half_bits* x, const unsigned char* codes, const half_bits* scales, int tokens, int rows, int columns, half_bits* y) {
    multiply<Int4<32>>(x, codes, scales, tokens, rows, columns, 32, y);
}
WINDLASS_KERNEL(kProductThreads, 2)
windlass_gemv_int4_g64(const half_bits* x, const unsigned char* codes, const half_bits* scales, int tokens, int rows, int columns, half_bits* y) {
    multiply<Int4<64>>(x, codes, scales, tokens, rows, columns, 64, y);
}
WINDLASS_KERNEL(kProductThreads, 2)
windlass_gemv_int4_g128(const half_bits* x, const unsigned char* codes, const half_bits* scales, int tokens, int rows, int columns, half_bits* y) {
    multiply<Int4<128>>(x, codes, scales, tokens, rows, columns, 128, y);
}
