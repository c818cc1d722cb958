// A norm or an activation, and at once its result as 8-bit codes with a scale per token: the input of an integer product.
//
// Each value is read and written once; between the two passes over a row (the sum or the largest value, then the codes)
// the row stays in registers. A row belongs to one block, and sums have one order, so results do not depend on the batch.
// Traffic a row: rms_norm_quantize 2 + 2 + 2 + 1 bytes a value, swiglu_quantize 4 + 1. Not yet measured on a GPU.
#include "device.cuh"

constexpr int kNormThreads = 256, kSwigluThreads = 512, kVector = 8, kVectors = 8;
constexpr float kLargestCode = 127.0f;

// The result of `combine` over the block, in the order of the warps, for every thread. `shared` holds 32 floats.
template <int kThreads, class Within, class Combine>
WINDLASS_DEVICE float reduce_block(float value, float* shared, Within within, Combine combine) {
    const int thread = static_cast<int>(threadIdx.x);
    const float warp_value = within(value);
    sync_block();
    if (thread % kWarp == 0) shared[thread / kWarp] = warp_value;
    sync_block();
    float result = shared[0];
    for (int i = 1; i < kThreads / kWarp; ++i) result = combine(result, shared[i]);
    return result;
}

WINDLASS_DEVICE unsigned pack_codes(const float* values, float inverse) {
    unsigned word = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int code = static_cast<int>(round_even(values[i] * inverse));
        word |= (static_cast<unsigned>(code) & 0xffu) << 8 * i;
    }
    return word;
}

// Writes the codes of a row held as `values[v]` = columns 8 (thread + v threads) on, and its scale. A row that holds an
// infinity or a NaN gets the scale NaN and codes 0.
template <int kThreads>
WINDLASS_DEVICE void write_codes(const float (&values)[kVectors][kVector], int columns, float* shared, unsigned char* codes, float* scale) {
    const int thread = static_cast<int>(threadIdx.x);
    float largest = 0.0f;
    bool sound = true;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
            largest = larger(largest, magnitude(values[v][i]));
            sound = sound && finite(values[v][i]);
        }
    }
    largest = sound ? largest : infinity();
    largest = reduce_block<kThreads>(largest, shared, [](float x) { return warp_largest(x); }, [](float a, float b) { return larger(a, b); });
    const bool usable = finite(largest);
    const float step = largest / kLargestCode, inverse = usable && largest > 0.0f ? kLargestCode / largest : 0.0f;
    if (thread == 0) *scale = usable ? step : bits_float(0x7fc00000u);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
        const int column = (thread + v * kThreads) * kVector;
        if (column >= columns) break;
        const uint2 packed = usable ? make_uint2(pack_codes(values[v], inverse), pack_codes(values[v] + 4, inverse)) : make_uint2(0, 0);
        store8(codes + column, packed);
    }
}

WINDLASS_DEVICE void widen(float (&values)[kVector], uint4 halves) {
    const unsigned words[4] = {halves.x, halves.y, halves.z, halves.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) values[2 * i] = low_float(words[i]), values[2 * i + 1] = high_float(words[i]);
}
WINDLASS_DEVICE uint4 narrow(const float (&values)[kVector]) {
    return make_uint4(to_pair(values[0], values[1]), to_pair(values[2], values[3]), to_pair(values[4], values[5]), to_pair(values[6], values[7]));
}

// sum = residual + delta as float16, then codes of rms_norm(sum).
WINDLASS_KERNEL(kNormThreads, 2)
windlass_rms_norm_quantize(const half_bits* residual, const half_bits* delta, const half_bits* gain, const float* epsilon, int columns,
                           half_bits* sum, unsigned char* codes, float* scales) {
    WINDLASS_SHARED(memory);
    float* const shared = reinterpret_cast<float*>(memory);
    const int thread = static_cast<int>(threadIdx.x);
    const long long row = static_cast<long long>(blockIdx.x) * columns;
    float values[kVectors][kVector] = {}, squares = 0.0f;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
        const int column = (thread + v * kNormThreads) * kVector;
        if (column >= columns) break;
        float more[kVector];
        widen(values[v], stream16(residual + row + column));
        widen(more, stream16(delta + row + column));
#pragma unroll
        for (int i = 0; i < kVector; ++i) values[v][i] += more[i];
        const uint4 stored = narrow(values[v]);
        store16(sum + row + column, stored);
        widen(values[v], stored);
#pragma unroll
        for (int i = 0; i < kVector; ++i) squares += values[v][i] * values[v][i];
    }
    const float total = reduce_block<kNormThreads>(squares, shared, [](float x) { return warp_sum(x); }, [](float a, float b) { return a + b; });
    const float factor = reciprocal_root(total / static_cast<float>(columns) + *epsilon);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
        const int column = (thread + v * kNormThreads) * kVector;
        if (column >= columns) break;
        float weights[kVector];
        widen(weights, load16(gain + column));
#pragma unroll
        for (int i = 0; i < kVector; ++i) values[v][i] *= factor * weights[i];
    }
    write_codes<kNormThreads>(values, columns, shared, codes + row, scales + blockIdx.x);
}

// Codes of silu(gate) * up; gate_up holds a token's gates, then its ups.
WINDLASS_KERNEL(kSwigluThreads, 1)
windlass_swiglu_quantize(const half_bits* gate_up, int columns, unsigned char* codes, float* scales) {
    WINDLASS_SHARED(memory);
    const int thread = static_cast<int>(threadIdx.x);
    const half_bits* gate = gate_up + 2ll * blockIdx.x * columns;
    float values[kVectors][kVector] = {};
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
        const int column = (thread + v * kSwigluThreads) * kVector;
        if (column >= columns) break;
        float up[kVector];
        widen(values[v], stream16(gate + column));
        widen(up, stream16(gate + columns + column));
#pragma unroll
        for (int i = 0; i < kVector; ++i) values[v][i] = silu(values[v][i]) * up[i];
    }
    write_codes<kSwigluThreads>(values, columns, reinterpret_cast<float*>(memory), codes + static_cast<long long>(blockIdx.x) * columns, scales + blockIdx.x);
}
