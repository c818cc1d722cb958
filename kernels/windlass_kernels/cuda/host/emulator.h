// Runs the kernels on a CPU, to check their logic: every CUDA thread is a fiber, one block runs at a time, and barriers,
// shuffles and matrix instructions make fibers wait for each other as a device would. What a device hides becomes an
// error here: threads that wait at different barriers, lanes missing from a shuffle, misaligned vectors, accesses beyond
// an argument. Shared memory starts as NaN; threads run forward, backward, at random or warp by warp, so a missing
// barrier changes results. Not emulated: timing, caches, memory order within a warp between barriers, several blocks at once.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct dim3 { unsigned x, y, z; };

inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace emulator {

struct Place {
    dim3 thread, block, block_size, grid_size;
};
extern Place place;
extern unsigned char* shared;

void sync_block();
void sync_warp();
/// Every lane's word, exchanged: writes `words` of this lane, waits, gives the table [32][words], valid until the next call.
const unsigned* exchange(const unsigned* mine, int words);
[[noreturn]] void fail(const char* what);

inline void require_aligned(const void* address, unsigned bytes) {
    if (reinterpret_cast<std::uintptr_t>(address) % bytes != 0) fail("misaligned vector access");
}
template <class T>
T load(const void* address) {
    require_aligned(address, sizeof(T));
    T value;
    std::memcpy(&value, address, sizeof(T));
    return value;
}
template <class T>
void store(void* address, T value) {
    require_aligned(address, sizeof(T));
    std::memcpy(address, &value, sizeof(T));
}
template <class To, class From>
To as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(To));
    return to;
}
inline float widen(std::uint16_t bits) { return static_cast<float>(as<_Float16>(bits)); }
inline std::uint16_t narrow(float value) { return as<std::uint16_t>(static_cast<_Float16>(value)); }

}  // namespace emulator

#define threadIdx (emulator::place.thread)
#define blockIdx (emulator::place.block)
#define blockDim (emulator::place.block_size)
#define gridDim (emulator::place.grid_size)

#define WINDLASS_KERNEL(threads, blocks_per_processor) extern "C" __attribute__((visibility("default"))) void
#define WINDLASS_DEVICE inline
#define WINDLASS_SHARED(name) unsigned char* const name = emulator::shared

inline void sync_block() { emulator::sync_block(); }
inline int emulated_lane() { return static_cast<int>(threadIdx.x % 32); }
inline unsigned shuffle_xor(unsigned value, int mask) {
    return emulator::exchange(&value, 1)[emulated_lane() ^ mask];
}
inline float shuffle_xor(float value, int mask) {
    return emulator::as<float>(shuffle_xor(emulator::as<unsigned>(value), mask));
}
inline unsigned vote_warp(bool vote) {
    const unsigned mine = vote;
    const unsigned* all = emulator::exchange(&mine, 1);
    unsigned bits = 0;
    for (int lane = 0; lane < 32; ++lane) bits |= all[lane] << lane;
    return bits;
}
inline int count_bits(unsigned bits) { return __builtin_popcount(bits); }

inline uint4 stream16(const void* address) { return emulator::load<uint4>(address); }
inline uint2 stream8(const void* address) { return emulator::load<uint2>(address); }
inline unsigned stream4(const void* address) { return emulator::load<unsigned>(address); }
inline uint4 load16(const void* address) { return emulator::load<uint4>(address); }
inline unsigned load4(const void* address) { return emulator::load<unsigned>(address); }
inline void store16(void* address, uint4 value) { emulator::store(address, value); }
inline void store8(void* address, uint2 value) { emulator::store(address, value); }

inline unsigned permute_bytes(unsigned a, unsigned b, unsigned selector) {
    const std::uint64_t both = a | static_cast<std::uint64_t>(b) << 32;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned chosen = selector >> 4 * i & 7;
        result |= static_cast<unsigned>(both >> 8 * chosen & 0xff) << 8 * i;
    }
    return result;
}
inline float to_float(half_bits value) { return emulator::widen(value); }
inline half_bits to_half(float value) { return emulator::narrow(value); }
inline pair to_pair(float low, float high) {
    return to_half(low) | static_cast<unsigned>(to_half(high)) << 16;
}
// float32 holds twice the digits of float16 and two more, so rounding twice equals rounding once.
inline pair subtract(pair a, pair b) {
    const float low = to_float(a & 0xffff) - to_float(b & 0xffff);
    return to_pair(low, to_float(a >> 16) - to_float(b >> 16));
}
inline float exp2_fast(float value) { return std::exp2(value); }
inline float reciprocal_root(float value) { return 1.0f / std::sqrt(value); }
inline float add_rn(float a, float b) { return a + b; }
inline float subtract_rn(float a, float b) { return a - b; }
inline float multiply_rn(float a, float b) { return a * b; }
inline float divide_rn(float a, float b) { return a / b; }
inline float round_even(float value) { return std::nearbyint(value); }
inline unsigned float_bits(float value) { return emulator::as<unsigned>(value); }
inline float bits_float(unsigned value) { return emulator::as<float>(value); }

inline void multiply_tile(float (&c)[4], pair a0, pair a1, pair a2, pair a3, pair b0, pair b1) {
    const unsigned mine[6] = {a0, a1, a2, a3, b0, b1};
    const unsigned* all = emulator::exchange(mine, 6);
    const int row = emulated_lane() / 4, column = emulated_lane() % 4 * 2;
    for (int i = 0; i < 4; ++i) {
        float sum = c[i];
        for (int k = 0; k < 16; ++k) {
            const unsigned* a = all + 6 * (4 * row + k % 8 / 2);
            const unsigned* b = all + 6 * (4 * (column + i % 2) + k % 8 / 2);
            const unsigned a_pair = a[2 * (k / 8) + i / 2], b_pair = b[4 + k / 8];
            const int shift = 16 * (k % 2);
            sum += to_float(a_pair >> shift & 0xffff) * to_float(b_pair >> shift & 0xffff);
        }
        c[i] = sum;
    }
}
inline void multiply_half_tile(float (&c)[2], pair a0, pair a2, pair b0, pair b1) {
    float all[4] = {c[0], c[1], 0.0f, 0.0f};
    multiply_tile(all, a0, 0u, a2, 0u, b0, b1);
    c[0] = all[0], c[1] = all[1];
}
