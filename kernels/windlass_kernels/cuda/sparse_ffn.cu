// A gated FFN that reads only the weights of chosen blocks of 64 neurons.
//
// The list of blocks lies in device memory, so a captured graph serves any choice: the grid has room for all blocks and
// those beyond `count` leave at once. The activations in between are compact: slot s of the list owns columns 64 s to
// 64 s + 63. Gate and up keep the checkpoint's rows; down is kept block by block, [blocks, hidden, 64], so that a chosen
// block is one contiguous piece. Every block chosen makes it the dense product.
// Traffic for density d: d times the dense weights, plus 2 d F activations. Not yet measured on a GPU.
#include "product.cuh"

constexpr int kBlockNeurons = 64, kStripsPerBlock = kBlockNeurons / kStripRows;

template <class Format>
WINDLASS_DEVICE void gate_up(const half_bits* x, const int* active, const int* count, const unsigned char* gate, const typename Format::Scale* gate_scales,
                             const unsigned char* up, const typename Format::Scale* up_scales, int tokens, int neurons, int columns, int group,
                             half_bits* y) {
    WINDLASS_SHARED(shared);
    float* const sums = reinterpret_cast<float*>(shared);
    const Lane lane;
    const int slot = static_cast<int>(blockIdx.x) / kStripsPerBlock, strip_row = static_cast<int>(blockIdx.x) % kStripsPerBlock * kStripRows;
    if (slot >= *count) return;
    const int row = active[slot] * kBlockNeurons + strip_row, thread = static_cast<int>(threadIdx.x);
    const Strip<Format> gate_strip(gate, gate_scales, row, neurons, columns, group, lane), up_strip(up, up_scales, row, neurons, columns, group, lane);
    float gate_sum[4] = {}, up_sum[4] = {};
    multiply_strip(gate_sum, gate_strip, x, tokens, columns, group, thread / kWarp, kProductWarps, lane);
    multiply_strip(up_sum, up_strip, x, tokens, columns, group, thread / kWarp, kProductWarps, lane);
    if constexpr (!Strip<Format>::kGrouped) gate_strip.apply_scales(gate_sum, 0), up_strip.apply_scales(up_sum, 0);
    const float gate_total = add_warps(gate_sum, sums, lane);
    const float up_total = add_warps(up_sum, sums + kProductWarps * kStripRows * kTokens, lane);
    const int token = thread / kStripRows;
    if (token < tokens) {
        y[static_cast<long long>(token) * neurons + slot * kBlockNeurons + strip_row + thread % kStripRows] = to_half(silu(gate_total) * up_total);
    }
}

template <class Format>
WINDLASS_DEVICE void down(const half_bits* a, const int* active, const int* count, const unsigned char* codes, const typename Format::Scale* scales,
                          int tokens, int rows, int neurons, int group, half_bits* y) {
    WINDLASS_SHARED(shared);
    constexpr bool kGrouped = Strip<Format>::kGrouped;
    const Lane lane;
    const int row = static_cast<int>(blockIdx.x) * kStripRows, thread = static_cast<int>(threadIdx.x), chosen = *count;
    const long long block_codes = static_cast<long long>(rows) * (kGrouped ? kBlockNeurons / 2 : kBlockNeurons);
    const long long block_scales = kGrouped ? static_cast<long long>(rows) * (kBlockNeurons / group) : 0;
    float sum[4] = {};
    for (int base = thread / kWarp; base < chosen; base += kProductWarps * kAhead) {
        constexpr int kSteps = kBlockNeurons / Format::kColumns;
        unsigned upper[kAhead][kSteps][Format::kWords] = {}, lower[kAhead][kSteps][Format::kWords] = {};
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
            const int slot = base + i * kProductWarps;
            if (slot >= chosen) break;
            const Strip<Format> strip(codes + active[slot] * block_codes, scales, row, rows, kBlockNeurons, group, lane);
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                Format::load(upper[i][step], strip.upper, step * Format::kColumns, lane);
                Format::load(lower[i][step], strip.lower, step * Format::kColumns, lane);
            }
        }
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
            const int slot = base + i * kProductWarps;
            if (slot >= chosen) break;
            const Strip<Format> strip(codes, scales + active[slot] * block_scales, row, rows, kBlockNeurons, group, lane);
            const half_bits* x = a + static_cast<long long>(lane.g < tokens ? lane.g : 0) * neurons + slot * kBlockNeurons;
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                float part[4] = {};
                Format::multiply(part, upper[i][step], lower[i][step], x + step * Format::kColumns, lane.g < tokens, lane);
                if constexpr (kGrouped) strip.apply_scales(part, step * Format::kColumns / group);
#pragma unroll
                for (int j = 0; j < 4; ++j) sum[j] += part[j];
            }
        }
    }
    if constexpr (!kGrouped) Strip<Format>(codes, scales, row, rows, kBlockNeurons, group, lane).apply_scales(sum, 0);
    const float total = add_warps(sum, reinterpret_cast<float*>(shared), lane);
    const int token = thread / kStripRows, target = row + thread % kStripRows;
    if (token < tokens && target < rows) y[static_cast<long long>(token) * rows + target] = to_half(total);
}

#define WINDLASS_SPARSE_FFN(suffix, Format, Scale, columns_per_scale)                                                                             \
    WINDLASS_KERNEL(kProductThreads, 2)                                                                                                           \
    windlass_sparse_gate_up_##suffix(const half_bits* x, const int* active, const int* count, const unsigned char* gate, const Scale* gate_scales,  \
                                     const unsigned char* up, const Scale* up_scales, int tokens, int neurons, int columns, half_bits* y) {       \
        gate_up<Format>(x, active, count, gate, gate_scales, up, up_scales, tokens, neurons, columns, columns_per_scale, y);                      \
    }                                                                                                                                             \
    WINDLASS_KERNEL(kProductThreads, 2)                                                                                                           \
    windlass_sparse_down_##suffix(const half_bits* a, const int* active, const int* count, const unsigned char* codes, const Scale* scales,       \
                                  int tokens, int rows, int neurons, half_bits* y) {                                                              \
        down<Format>(a, active, count, codes, scales, tokens, rows, neurons, columns_per_scale, y);                                               \
    }

WINDLASS_SPARSE_FFN(int8, Int8, float, kBlockNeurons)
WINDLASS_SPARSE_FFN(int4_g32, Int4<32>, half_bits, 32)
WINDLASS_SPARSE_FFN(int4_g64, Int4<64>, half_bits, 64)
