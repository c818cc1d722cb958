// A strip of a quantised matrix times up to eight tokens, on tensor cores: the piece that all products here are made of.
//
// A warp owns 16 rows of the matrix and walks along their columns in steps. Codes become float16 integers exactly (a few
// bit operations, no table), are multiplied with float16 inputs and added in float32; scales meet the sums, never the
// codes. Columns within a step are dealt to lanes so that each reads whole words from device memory straight into the
// registers where the matrix instruction wants them: no shared memory, no second pass. A token's sum is the same for any
// number of tokens beside it.
//
// Codes are row-major as everywhere in this project: 8 bits [N, K] two's complement; 4 bits [N, K / 2] two's complement,
// the even column in the low half of a byte.
#pragma once

#include "device.cuh"

constexpr int kTokens = 8;
constexpr int kStripRows = 16;
constexpr int kProductWarps = 8;
constexpr int kProductThreads = kProductWarps * kWarp;
constexpr int kAhead = 4;  // steps whose words are requested before the first is used

struct Lane {
    int g, t;  // group of four lanes: row within eight and token; place within it
    WINDLASS_DEVICE Lane() : g(static_cast<int>(threadIdx.x % kWarp) / 4), t(static_cast<int>(threadIdx.x % 4)) {}
};

// Two signed bytes at `selector` of a word with its sign bits turned, as float16 integers.
WINDLASS_DEVICE pair widen_bytes(unsigned flipped, unsigned selector) {
    return subtract(permute_bytes(flipped, 0x64646464u, selector), 0x64806480u);  // 1024 + 128
}
// The 4-bit codes at bits 0 and 16 of a word.
WINDLASS_DEVICE pair widen_nibbles(unsigned word) {
    return subtract(((word & 0x000f000fu) ^ 0x00080008u) | 0x64006400u, 0x64086408u);  // 1024 + 8
}

// 64 columns a step, one scale a row.
struct Int8 {
    static constexpr int kColumns = 64, kWords = 4;
    typedef float Scale;

    static WINDLASS_DEVICE void load(unsigned (&words)[kWords], const unsigned char* row, int column, Lane lane) {
        const uint4 v = stream16(row + column + 16 * lane.t);
        words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
    }
    static WINDLASS_DEVICE void multiply(float (&sum)[4], const unsigned (&upper)[kWords], const unsigned (&lower)[kWords], const half_bits* x,
                                         bool present, Lane lane) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint4 b = present ? load16(x + 16 * lane.t + 8 * half) : make_uint4(0, 0, 0, 0);
            const unsigned u = upper[2 * half] ^ 0x80808080u, l = lower[2 * half] ^ 0x80808080u;
            multiply_tile(sum, widen_bytes(u, 0x4140), widen_bytes(l, 0x4140), widen_bytes(u, 0x4342), widen_bytes(l, 0x4342), b.x, b.y);
            const unsigned v = upper[2 * half + 1] ^ 0x80808080u, m = lower[2 * half + 1] ^ 0x80808080u;
            multiply_tile(sum, widen_bytes(v, 0x4140), widen_bytes(m, 0x4140), widen_bytes(v, 0x4342), widen_bytes(m, 0x4342), b.z, b.w);
        }
    }
};

// One scale for kGroup columns of a row; a step stays within a group.
template <int kGroup>
struct Int4 {
    static constexpr int kColumns = kGroup < 64 ? kGroup : 64, kWords = kColumns / 32;
    typedef half_bits Scale;

    static WINDLASS_DEVICE void load(unsigned (&words)[kWords], const unsigned char* row, int column, Lane lane) {
        const unsigned char* address = row + column / 2 + 4 * kWords * lane.t;
        if constexpr (kWords == 2) {
            const uint2 v = stream8(address);
            words[0] = v.x, words[1] = v.y;
        } else {
            words[0] = stream4(address);
        }
    }
    static WINDLASS_DEVICE void multiply(float (&sum)[4], const unsigned (&upper)[kWords], const unsigned (&lower)[kWords], const half_bits* x,
                                         bool present, Lane lane) {
#pragma unroll
        for (int i = 0; i < kWords; ++i) {
            const uint4 b = present ? load16(x + 8 * kWords * lane.t + 8 * i) : make_uint4(0, 0, 0, 0);
            const unsigned u = upper[i], l = lower[i];
            // Codes 0 and 4 of a word share a register, then 1 and 5, and so on: the inputs are paired alike.
            multiply_tile(sum, widen_nibbles(u), widen_nibbles(l), widen_nibbles(u >> 4), widen_nibbles(l >> 4),
                          permute_bytes(b.x, b.z, 0x5410), permute_bytes(b.x, b.z, 0x7632));
            multiply_tile(sum, widen_nibbles(u >> 8), widen_nibbles(l >> 8), widen_nibbles(u >> 12), widen_nibbles(l >> 12),
                          permute_bytes(b.y, b.w, 0x5410), permute_bytes(b.y, b.w, 0x7632));
        }
    }
};

// Codes of the 16 rows that begin at `row`, K columns each; rows beyond `rows` repeat the last one and are not stored.
template <class Format>
struct Strip {
    const unsigned char *upper, *lower;
    const typename Format::Scale *upper_scale, *lower_scale;

    static constexpr bool kGrouped = sizeof(typename Format::Scale) == 2;

    WINDLASS_DEVICE Strip(const unsigned char* codes, const typename Format::Scale* scales, int row, int rows, int columns, int group,
                          Lane lane) {
        const long long first = row + lane.g < rows ? row + lane.g : rows - 1;
        const long long second = row + lane.g + 8 < rows ? row + lane.g + 8 : rows - 1;
        const int row_bytes = kGrouped ? columns / 2 : columns, row_scales = kGrouped ? columns / group : 1;
        upper = codes + first * row_bytes, lower = codes + second * row_bytes;
        upper_scale = scales + first * row_scales, lower_scale = scales + second * row_scales;
    }
    WINDLASS_DEVICE void apply_scales(float (&sum)[4], int index) const {
        float high, low;
        if constexpr (kGrouped) {
            high = to_float(upper_scale[index]), low = to_float(lower_scale[index]);
        } else {
            high = upper_scale[0], low = lower_scale[0];
        }
        sum[0] *= high, sum[1] *= high, sum[2] *= low, sum[3] *= low;
    }
};

// Adds to `sum` the columns of one worker's share: of every `workers` runs of kAhead neighbouring steps the one numbered
// `worker`. A lane's sums are rows g and g + 8, tokens 2t and 2t + 1. 8-bit sums still want the row's scale.
template <class Format>
WINDLASS_DEVICE void multiply_strip(float (&sum)[4], const Strip<Format>& strip, const half_bits* x, int tokens, int columns, int group,
                                    int worker, int workers, Lane lane) {
    const bool present = lane.g < tokens;
    const half_bits* input = x + static_cast<long long>(present ? lane.g : 0) * columns;
    const int steps = columns / Format::kColumns;
    for (int base = worker * kAhead; base < steps; base += workers * kAhead) {
        unsigned upper[kAhead][Format::kWords] = {}, lower[kAhead][Format::kWords] = {};
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
            const int step = base + i;
            if (step >= steps) break;
            Format::load(upper[i], strip.upper, step * Format::kColumns, lane);
            Format::load(lower[i], strip.lower, step * Format::kColumns, lane);
        }
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
            const int step = base + i;
            if (step >= steps) break;
            const half_bits* part = input + step * Format::kColumns;
            if constexpr (Strip<Format>::kGrouped) {
                float grouped[4] = {};
                Format::multiply(grouped, upper[i], lower[i], part, present, lane);
                strip.apply_scales(grouped, step * Format::kColumns / group);
#pragma unroll
                for (int j = 0; j < 4; ++j) sum[j] += grouped[j];
            } else {
                Format::multiply(sum, upper[i], lower[i], part, present, lane);
            }
        }
    }
}

// The sums of all warps of a block, added in the order of the warps. Thread i < 128 gets token i / 16, row i % 16.
WINDLASS_DEVICE float add_warps(const float (&sum)[4], float* shared, Lane lane) {
    const int warp = static_cast<int>(threadIdx.x) / kWarp, thread = static_cast<int>(threadIdx.x);
    float* mine = shared + warp * kStripRows * kTokens;
#pragma unroll
    for (int j = 0; j < 4; ++j) mine[(2 * lane.t + j % 2) * kStripRows + lane.g + 8 * (j / 2)] = sum[j];
    sync_block();
    float total = 0.0f;
    if (thread < kStripRows * kTokens) {
        for (int i = 0; i < kProductWarps; ++i) total += shared[i * kStripRows * kTokens + thread];
    }
    return total;
}
