// Keys and values on their way into the cache; page_format.py defines bytes, rounding and what a tail is.
//
// kv_write turns a new key by its place in its page and stores it with its value in the float16 tail of the sequence.
// kv_quantize makes head pages of full tails: one block a page and head, the tail in shared memory, so it is read once;
// every rounding step is one IEEE operation, so a page's bytes are those of every other device.
// Both write into arrays that they are also given as inputs (without a name here), as TensorRT asks of such outputs.
// Traffic: kv_quantize reads 256 D bytes and writes 4.5 bits an element. Not yet measured on a GPU.
#include "device.cuh"

constexpr int kPageTokens = 64, kGroupChannels = 64, kWriteThreads = 128, kQuantizeThreads = 256;
constexpr float kLargestCode = 15.0f;

WINDLASS_KERNEL(kWriteThreads, 4)
windlass_kv_write(const half_bits* keys, const half_bits* values, const float* cosines, const float* sines, const int* tails, const int* offsets,
                  const half_bits*, const half_bits*,
                  int heads, int width, int half, int interleaved, half_bits* key_tails, half_bits* value_tails) {
    const long long token = blockIdx.x, head = blockIdx.y, source = (token * heads + head) * width;
    const int tail = tails[token], offset = offsets[token];
    if (tail < 0) return;
    const long long target = ((tail * static_cast<long long>(heads) + head) * kPageTokens + offset) * width;
    for (int i = static_cast<int>(threadIdx.x); i < width; i += kWriteThreads) {
        float key = to_float(keys[source + i]);
        if (i < 2 * half) {
            const int angle = interleaved ? i / 2 : i % half;
            const bool first = interleaved ? i % 2 == 0 : i < half;
            const int partner = interleaved ? i ^ 1 : first ? i + half : i - half;
            const float other = to_float(keys[source + partner]);
            const float cosine = cosines[offset * half + angle], sine = sines[offset * half + angle];
            key = first ? key * cosine - other * sine : key * cosine + other * sine;
        }
        key_tails[target + i] = to_half(key);
        value_tails[target + i] = values[source + i];
    }
}

struct Rounding {
    half_bits scale, minimum;
    float low, inverse;
};

// `sound`: the row holds numbers only.
WINDLASS_DEVICE Rounding choose_rounding(float least, float most, bool sound) {
    const half_bits nan = 0x7e00;
    Rounding r;
    r.minimum = sound ? to_half(least) : nan;
    r.low = to_float(r.minimum);
    r.scale = sound ? to_half(divide_rn(subtract_rn(most, r.low), kLargestCode)) : nan;
    const float step = to_float(r.scale);
    r.inverse = step > 0.0f ? divide_rn(1.0f, step) : 0.0f;
    return r;
}
WINDLASS_DEVICE unsigned code_of(float value, Rounding r) {
    const float steps = round_even(multiply_rn(subtract_rn(value, r.low), r.inverse));
    // A NaN fails the comparison and becomes 0.
    return steps > 0.0f ? static_cast<unsigned>(steps < kLargestCode ? steps : kLargestCode) : 0u;
}

// Rows are channels: thread d reads column d of the tail, 64 tokens. Bytes of a channel pair are written by the even one.
WINDLASS_DEVICE void quantize_keys(const half_bits* tail, int width, unsigned char* page, Rounding* rounding) {
    half_bits* const scales = reinterpret_cast<half_bits*>(page + kPageTokens / 2 * width);
    for (int channel = static_cast<int>(threadIdx.x); channel < width; channel += kQuantizeThreads) {
        float least = infinity(), most = -infinity();
        bool sound = true;
        for (int token = 0; token < kPageTokens; ++token) {
            const float value = to_float(tail[token * width + channel]);
            sound = sound && finite(value);
            least = value < least ? value : least;
            most = larger(most, value);
        }
        rounding[channel] = choose_rounding(least, most, sound);
        scales[channel] = rounding[channel].scale;
        scales[width + channel] = rounding[channel].minimum;
    }
    sync_block();
    // Four tokens of a pair of channels make a word.
    for (int i = static_cast<int>(threadIdx.x); i < width / 2 * kPageTokens / 4; i += kQuantizeThreads) {
        const int channel = i / (kPageTokens / 4) * 2, token = i % (kPageTokens / 4) * 4;
        unsigned word = 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const unsigned both = *reinterpret_cast<const unsigned*>(tail + (token + j) * width + channel);
            word |= (code_of(low_float(both), rounding[channel]) | code_of(high_float(both), rounding[channel + 1]) << 4) << 8 * j;
        }
        reinterpret_cast<unsigned*>(page)[i] = word;
    }
    sync_block();
}

// Rows are tokens, within a group of channels: four threads share one.
WINDLASS_DEVICE void quantize_values(const half_bits* tail, int width, unsigned char* codes, Rounding* rounding) {
    const int groups = (width + kGroupChannels - 1) / kGroupChannels;
    half_bits* const scales = reinterpret_cast<half_bits*>(codes + kPageTokens / 2 * width);
    const int part = static_cast<int>(threadIdx.x) % 4, token = static_cast<int>(threadIdx.x) / 4;
    for (int group = 0; group < groups; ++group) {
        const int first = group * kGroupChannels, end = first + kGroupChannels < width ? first + kGroupChannels : width;
        float least = infinity(), most = -infinity();
        unsigned broken = 0;
        for (int channel = first + part; channel < end; channel += 4) {
            const float value = to_float(tail[token * width + channel]);
            broken |= !finite(value);
            least = value < least ? value : least;
            most = larger(most, value);
        }
#pragma unroll
        for (int mask = 1; mask < 4; mask *= 2) {
            const float other = shuffle_xor(least, mask);
            least = other < least ? other : least;
            most = larger(most, shuffle_xor(most, mask));
            broken |= shuffle_xor(broken, mask);
        }
        if (part == 0) {
            const Rounding r = choose_rounding(least, most, broken == 0);
            rounding[group * kPageTokens + token] = r;
            scales[group * kPageTokens + token] = r.scale;
            scales[(groups + group) * kPageTokens + token] = r.minimum;
        }
    }
    sync_block();
    // Four channels of a pair of tokens make a word; a word lies within a group.
    for (int i = static_cast<int>(threadIdx.x); i < kPageTokens / 2 * width / 4; i += kQuantizeThreads) {
        const int even = i / (width / 4) * 2, channel = i % (width / 4) * 4;
        const Rounding* r = rounding + channel / kGroupChannels * kPageTokens + even;
        unsigned word = 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float first = to_float(tail[even * width + channel + j]), second = to_float(tail[(even + 1) * width + channel + j]);
            word |= (code_of(first, r[0]) | code_of(second, r[1]) << 4) << 8 * j;
        }
        reinterpret_cast<unsigned*>(codes)[i] = word;
    }
}

WINDLASS_KERNEL(kQuantizeThreads, 2)
windlass_kv_quantize(const half_bits* key_tails, const half_bits* value_tails, const int* tails, const int* pages,
                     const unsigned char*, int heads, int width, int page_bytes, unsigned char* pool) {
    WINDLASS_SHARED(shared);
    half_bits* const staged = reinterpret_cast<half_bits*>(shared);
    Rounding* const rounding = reinterpret_cast<Rounding*>(shared + kPageTokens * width * 2);
    const int tail = tails[blockIdx.x], thread = static_cast<int>(threadIdx.x);
    if (tail < 0) return;
    const long long source = (static_cast<long long>(tail) * heads + blockIdx.y) * kPageTokens * width;
    unsigned char* const page = pool + (static_cast<long long>(pages[blockIdx.x]) * heads + blockIdx.y) * page_bytes;
    const int vectors = kPageTokens * width / 8;
    for (int i = thread; i < vectors; i += kQuantizeThreads) store16(staged + 8 * i, stream16(key_tails + source + 8 * i));
    sync_block();
    quantize_keys(staged, width, page, rounding);
    for (int i = thread; i < vectors; i += kQuantizeThreads) store16(staged + 8 * i, stream16(value_tails + source + 8 * i));
    sync_block();
    quantize_values(staged, width, page + kPageTokens / 2 * width + 4 * width, rounding);
}
