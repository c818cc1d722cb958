// The device words that the kernels use, each in one line of PTX, and nothing else: no header of a framework or of the
// toolkit, so NVRTC compiles the sources without an include path and a C++ compiler builds them for a CPU, where
// host/emulator.h gives the same words another meaning. A float16 is its bits; two of them make a `pair`, the first in
// the low half.
#pragma once

typedef unsigned short half_bits;
typedef unsigned pair;

#ifdef __CUDACC__

#define WINDLASS_KERNEL(threads, blocks_per_processor) \
    extern "C" __global__ void __launch_bounds__(threads, blocks_per_processor)
#define WINDLASS_DEVICE __device__ __forceinline__
#define WINDLASS_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

WINDLASS_DEVICE void sync_block() { __syncthreads(); }
WINDLASS_DEVICE unsigned shuffle_xor(unsigned value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
WINDLASS_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
WINDLASS_DEVICE unsigned vote_warp(bool vote) { return __ballot_sync(0xffffffffu, vote); }
WINDLASS_DEVICE int count_bits(unsigned bits) { return __popc(bits); }

// Data read once: past the first-level cache, which is left to what is read again.
WINDLASS_DEVICE uint4 stream16(const void* address) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(address));
    return v;
}
WINDLASS_DEVICE uint2 stream8(const void* address) {
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(address));
    return v;
}
WINDLASS_DEVICE unsigned stream4(const void* address) {
    unsigned v;
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(address));
    return v;
}
// Device or shared memory.
WINDLASS_DEVICE uint4 load16(const void* address) { return *static_cast<const uint4*>(address); }
WINDLASS_DEVICE unsigned load4(const void* address) { return *static_cast<const unsigned*>(address); }
WINDLASS_DEVICE void store16(void* address, uint4 value) { *static_cast<uint4*>(address) = value; }
WINDLASS_DEVICE void store8(void* address, uint2 value) { *static_cast<uint2*>(address) = value; }

WINDLASS_DEVICE unsigned permute_bytes(unsigned a, unsigned b, unsigned selector) { return __byte_perm(a, b, selector); }

WINDLASS_DEVICE float to_float(half_bits value) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value));
    return wide;
}
WINDLASS_DEVICE half_bits to_half(float value) {
    half_bits narrow;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow) : "f"(value));
    return narrow;
}
WINDLASS_DEVICE pair to_pair(float low, float high) {
    pair both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
WINDLASS_DEVICE pair subtract(pair a, pair b) {
    pair difference;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(difference) : "r"(a), "r"(b));
    return difference;
}
WINDLASS_DEVICE float exp2_fast(float value) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(value));
    return power;
}
WINDLASS_DEVICE float reciprocal_root(float value) { return rsqrtf(value); }

// Single IEEE operations that the compiler must not fuse or approximate.
WINDLASS_DEVICE float add_rn(float a, float b) { return __fadd_rn(a, b); }
WINDLASS_DEVICE float subtract_rn(float a, float b) { return __fsub_rn(a, b); }
WINDLASS_DEVICE float multiply_rn(float a, float b) { return __fmul_rn(a, b); }
WINDLASS_DEVICE float divide_rn(float a, float b) { return __fdiv_rn(a, b); }
WINDLASS_DEVICE float round_even(float value) { return rintf(value); }
WINDLASS_DEVICE unsigned float_bits(float value) { return __float_as_uint(value); }
WINDLASS_DEVICE float bits_float(unsigned value) { return __uint_as_float(value); }

// d = a * b + c over a tile of 16 x 16 times 16 x 8 (PTX mma.m16n8k16): lane 4 g + t holds of a the rows g and g + 8 at
// columns 2t, 2t + 1 (a0, a1) and 2t + 8, 2t + 9 (a2, a3); of b the column g at those rows; of c rows g and g + 8 at
// columns 2t, 2t + 1. Which element of a sum is called column 2t is free as long as a and b agree.
WINDLASS_DEVICE void multiply_tile(float (&c)[4], pair a0, pair a1, pair a2, pair a3, pair b0, pair b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// The same where rows 8 to 15 of a are zero: only the first two results exist.
#pragma nv_diag_suppress 550  // results that nobody reads
WINDLASS_DEVICE void multiply_half_tile(float (&c)[2], pair a0, pair a2, pair b0, pair b1) {
    float unused_low, unused_high;
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %5}, {%7, %8}, {%0, %1, %9, %9};"
        : "+f"(c[0]), "+f"(c[1]), "=f"(unused_low), "=f"(unused_high)
        : "r"(a0), "r"(0u), "r"(a2), "r"(b0), "r"(b1), "f"(0.0f));
}
#pragma nv_diag_default 550

#else
#include "host/emulator.h"
#endif

constexpr int kWarp = 32;
constexpr float kLog2E = 1.4426950408889634f;

WINDLASS_DEVICE float infinity() { return bits_float(0x7f800000u); }
WINDLASS_DEVICE float low_float(pair both) { return to_float(static_cast<half_bits>(both & 0xffffu)); }
WINDLASS_DEVICE float high_float(pair both) { return to_float(static_cast<half_bits>(both >> 16)); }
WINDLASS_DEVICE float larger(float a, float b) { return a > b ? a : b; }
WINDLASS_DEVICE float magnitude(float value) { return bits_float(float_bits(value) & 0x7fffffffu); }
WINDLASS_DEVICE bool finite(float value) { return (float_bits(value) & 0x7f800000u) != 0x7f800000u; }
WINDLASS_DEVICE float silu(float value) { return value / (1.0f + exp2_fast(-value * kLog2E)); }

WINDLASS_DEVICE float warp_sum(float value) {
    for (int mask = kWarp / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
}
WINDLASS_DEVICE float warp_largest(float value) {
    for (int mask = kWarp / 2; mask > 0; mask /= 2) value = larger(value, shuffle_xor(value, mask));
    return value;
}
