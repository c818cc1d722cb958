// Attention of one new token per sequence over a cache of 4-bit pages (page_format.py) and a float16 tail.
//
// A sequence is cut into pieces of `pages_per_piece` pages; a block takes a piece of one key/value head, its warps take
// pages in turn, and attention_merge joins the pieces. Where pieces are cut depends on the position of a page alone, so a
// token's result does not depend on the batch or on whether its pages were found or computed.
//
// A page meets the query on tensor cores, with up to eight heads that share the keys as rows:
//  * All codes of a page (64 D bytes) are requested before the first is used. A lane reads eight bytes of a code row, and
//    each byte is two neighbours along the summed axis: the pair that the instruction multiplies. Codes go from device
//    memory to registers and nowhere else.
//  * The query is turned back by the page's position once, multiplied with the key scales, and meets the codes as whole
//    numbers; minima add one number per head and page. Odd neighbours keep their four-bit shift (16 times the code), for
//    which the query, or the weight of a value, is divided by 16: exact in float16 short of underflow.
//  * Weights of tokens are made in the registers in which the second product wants them.
// Traffic: 4.5 bits an element of the cache once, per group of eight query heads. Not yet measured on a GPU.
#include "device.cuh"

constexpr int kPageTokens = 64, kGroupChannels = 64, kHeads = 8, kWarps = 4, kAttentionThreads = kWarps * kWarp;

// The byte of `word` chosen by `selector` (0x4i4i) as float16 (low half of the byte, 16 times the high half).
WINDLASS_DEVICE pair widen_byte(unsigned word, unsigned selector) {
    return subtract((permute_bytes(word, 0u, selector) & 0x00f0000fu) | 0x64006400u, 0x64006400u);
}

template <int kWidth>
struct State {
    static constexpr int kGroups = kWidth / kGroupChannels, kTiles = kWidth / 8;

    float output[kTiles][2] = {};    // head 2-row tile: channels of tile i, see `channel`
    float offsets[kGroups] = {};     // what minima add, of this lane's tokens
    float largest = -infinity(), total = 0.0f;
};

// The scores of head g for tokens 16t .. 16t + 15 become weights; earlier results are scaled to the new largest score.
template <int kWidth>
WINDLASS_DEVICE void weigh(State<kWidth>& state, float (&scores)[16]) {
    float largest = state.largest;
#pragma unroll
    for (int i = 0; i < 16; ++i) largest = larger(largest, scores[i]);
    largest = larger(largest, shuffle_xor(largest, 1));
    largest = larger(largest, shuffle_xor(largest, 2));
    const float base = largest == -infinity() ? 0.0f : largest, keep = exp2_fast(state.largest - base);
    state.largest = largest;
    state.total *= keep;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        scores[i] = exp2_fast(scores[i] - base);
        state.total += scores[i];
    }
#pragma unroll
    for (int group = 0; group < State<kWidth>::kGroups; ++group) state.offsets[group] *= keep;
#pragma unroll
    for (int tile = 0; tile < State<kWidth>::kTiles; ++tile) state.output[tile][0] *= keep, state.output[tile][1] *= keep;
}

// Channels 2r and 2r + 1 of a query [D] in shared memory, turned by `cosines` and `sines`.
WINDLASS_DEVICE void turn(const float* query, int channel, const float* cosines, const float* sines, int half, int interleaved, float (&turned)[2]) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
        const int i = channel + j;
        turned[j] = query[i];
        if (i < 2 * half) {
            const int angle = interleaved ? i / 2 : i < half ? i : i - half;
            const bool first = interleaved ? j == 0 : i < half;
            const float other = query[interleaved ? i ^ 1 : first ? i + half : i - half];
            turned[j] = first ? turned[j] * cosines[angle] - other * sines[angle] : turned[j] * cosines[angle] + other * sines[angle];
        }
    }
}

// Eight bytes of each code row that a lane owns: rows 4i + t of the keys, rows 8t + p of the values.
template <int kWidth>
struct Codes {
    uint2 keys[kWidth / 8], values[8][kWidth / kGroupChannels];

    WINDLASS_DEVICE void load(const unsigned char* page, int g, int t) {
        const unsigned char* value_codes = page + kPageTokens / 2 * kWidth + 4 * kWidth;
#pragma unroll
        for (int i = 0; i < kWidth / 8; ++i) keys[i] = stream8(page + (4 * i + t) * kPageTokens + 8 * g);
#pragma unroll
        for (int p = 0; p < 8; ++p) {
#pragma unroll
            for (int group = 0; group < kWidth / kGroupChannels; ++group) {
                values[p][group] = stream8(value_codes + (8 * t + p) * kWidth + kGroupChannels * group + 8 * g);
            }
        }
    }
};

// Scores of head g against tokens 16t .. 16t + 15, in units of log2.
template <int kWidth>
WINDLASS_DEVICE void score_codes(const uint2 (&codes)[kWidth / 8], const unsigned char* page, const float* query, const float* cosines,
                                 const float* sines, int half, int interleaved, int t, float (&scores)[16]) {
    const half_bits* scales = reinterpret_cast<const half_bits*>(page + kPageTokens / 2 * kWidth);
    float sums[8][2] = {}, offset = 0.0f;
#pragma unroll
    for (int i = 0; i < kWidth / 8; i += 2) {
        pair factors[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const int channel = 2 * (4 * (i + j) + t);
            float turned[2];
            turn(query, channel, cosines, sines, half, interleaved, turned);
            const pair scale = load4(scales + channel), minimum = load4(scales + kWidth + channel);
            offset += turned[0] * low_float(minimum) + turned[1] * high_float(minimum);
            factors[j] = to_pair(turned[0] * low_float(scale), turned[1] * high_float(scale) * 0.0625f);
        }
#pragma unroll
        for (int tile = 0; tile < 8; ++tile) {
            const unsigned selector = 0x4040u + 0x0101u * (tile % 4);
            const unsigned even = tile < 4 ? codes[i].x : codes[i].y, odd = tile < 4 ? codes[i + 1].x : codes[i + 1].y;
            multiply_half_tile(sums[tile], factors[0], factors[1], widen_byte(even, selector), widen_byte(odd, selector));
        }
    }
    offset += shuffle_xor(offset, 1);
    offset += shuffle_xor(offset, 2);
#pragma unroll
    for (int tile = 0; tile < 8; ++tile) scores[tile] = sums[tile][0] + offset, scores[tile + 8] = sums[tile][1] + offset;
}

// Adds the values of a page under the weights of tokens 16t .. 16t + 15.
template <int kWidth>
WINDLASS_DEVICE void add_codes(State<kWidth>& state, const uint2 (&codes)[8][kWidth / kGroupChannels], const unsigned char* page,
                               const float (&weights)[16], int t) {
    constexpr int kGroups = kWidth / kGroupChannels;
    const half_bits* scales = reinterpret_cast<const half_bits*>(page + kPageTokens * kWidth + 4 * kWidth);
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
        const half_bits* scale = scales + group * kPageTokens + 16 * t;
        pair factors[8];
#pragma unroll
        for (int p = 0; p < 8; ++p) {
            const pair step = load4(scale + 2 * p), minimum = load4(scale + kGroups * kPageTokens + 2 * p);
            state.offsets[group] += weights[2 * p] * low_float(minimum) + weights[2 * p + 1] * high_float(minimum);
            factors[p] = to_pair(weights[2 * p] * low_float(step), weights[2 * p + 1] * high_float(step) * 0.0625f);
        }
#pragma unroll
        for (int p = 0; p < 8; p += 2) {
#pragma unroll
            for (int tile = 0; tile < 8; ++tile) {
                const unsigned selector = 0x4040u + 0x0101u * (tile % 4);
                const uint2 &first = codes[p][group], &second = codes[p + 1][group];
                multiply_half_tile(state.output[8 * group + tile], factors[p], factors[p + 1], widen_byte(tile < 4 ? first.x : first.y, selector),
                                   widen_byte(tile < 4 ? second.x : second.y, selector));
            }
        }
    }
}

// The tail: float16 keys, turned by their place, and values, both [64, D]; `seen` tokens of it count.
template <int kWidth>
WINDLASS_DEVICE void add_tail(State<kWidth>& state, const half_bits* keys, const half_bits* values, const float* query, const float* cosines,
                              const float* sines, int half, int interleaved, int seen, int g, int t) {
    float sums[8][2] = {}, scores[16];
#pragma unroll
    for (int i = 0; i < kWidth / 8; i += 2) {
        pair factors[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            float turned[2];
            turn(query, 2 * (4 * (i + j) + t), cosines, sines, half, interleaved, turned);
            factors[j] = to_pair(turned[0], turned[1]);
        }
#pragma unroll
        for (int tile = 0; tile < 8; ++tile) {
            const bool present = 8 * g + tile < seen;
            const half_bits* key = keys + (8 * g + tile) * kWidth + 2 * (4 * i + t);
            multiply_half_tile(sums[tile], factors[0], factors[1], present ? load4(key) : 0u, present ? load4(key + 8) : 0u);
        }
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) scores[i] = 16 * t + i < seen ? sums[i % 8][i / 8] : -infinity();
    weigh(state, scores);
#pragma unroll
    for (int p = 0; p < 8; p += 2) {
        const pair first = to_pair(scores[2 * p], scores[2 * p + 1]), second = to_pair(scores[2 * p + 2], scores[2 * p + 3]);
        const int token = 16 * t + 2 * p;
#pragma unroll
        for (int tile = 0; tile < kWidth / 8; ++tile) {
            const half_bits* value = values + token * kWidth + kGroupChannels * (tile / 8) + 8 * g + tile % 8;
            pair b[2];
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const unsigned even = token + 2 * j < seen ? value[2 * j * kWidth] : 0u;
                const unsigned odd = token + 2 * j + 1 < seen ? value[(2 * j + 1) * kWidth] : 0u;
                b[j] = even | odd << 16;
            }
            multiply_half_tile(state.output[tile], first, second, b[0], b[1]);
        }
    }
}

// Joins the warps of a block and writes the piece: output [D] of each head not yet divided, its largest score and total.
template <int kWidth>
WINDLASS_DEVICE void write_piece(State<kWidth>& state, float* shared, int heads, float* output, float* summary, long long stride, int g, int t) {
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    state.total += shuffle_xor(state.total, 1);
    state.total += shuffle_xor(state.total, 2);
#pragma unroll
    for (int group = 0; group < State<kWidth>::kGroups; ++group) {
        state.offsets[group] += shuffle_xor(state.offsets[group], 1);
        state.offsets[group] += shuffle_xor(state.offsets[group], 2);
    }
    float* const summaries = shared + kWarps * kHeads * kWidth;  // [warp][head][largest, total]
    sync_block();
#pragma unroll
    for (int tile = 0; tile < State<kWidth>::kTiles; ++tile) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            // Column 2t + j of a tile is the lane group that read it: channel 8 (2t + j) + tile of the group of 64.
            const int channel = kGroupChannels * (tile / 8) + 8 * (2 * t + j) + tile % 8;
            shared[(warp * kHeads + g) * kWidth + channel] = state.output[tile][j] + state.offsets[tile / 8];
        }
    }
    if (t == 0) {
        summaries[(warp * kHeads + g) * 2] = state.largest;
        summaries[(warp * kHeads + g) * 2 + 1] = state.total;
    }
    sync_block();
    for (int i = static_cast<int>(threadIdx.x); i < heads * kWidth; i += kAttentionThreads) {
        const int head = i / kWidth;
        float largest = -infinity(), total = 0.0f, value = 0.0f;
        for (int w = 0; w < kWarps; ++w) largest = larger(largest, summaries[(w * kHeads + head) * 2]);
        for (int w = 0; w < kWarps; ++w) {
            const float own = summaries[(w * kHeads + head) * 2], factor = own == -infinity() ? 0.0f : exp2_fast(own - largest);
            total += factor * summaries[(w * kHeads + head) * 2 + 1];
            value += factor * shared[(w * kHeads + head) * kWidth + i % kWidth];
        }
        output[head * stride * kWidth + i % kWidth] = value;
        if (i % kWidth == 0) summary[head * stride * 2] = largest, summary[head * stride * 2 + 1] = total;
    }
}

template <int kWidth>
WINDLASS_DEVICE void attend(const half_bits* queries, const unsigned char* pool, const int* page_table, const int* page_bases, const half_bits* key_tails,
                            const half_bits* value_tails, const int* tails, const int* positions, const float* cosines, const float* sines,
                            const float* scale, int heads, int kv_heads, int page_bytes, int table_width, int half, int interleaved,
                            int pages_per_piece, int pieces, float* outputs, float* summaries) {
    WINDLASS_SHARED(memory);
    float* const shared = reinterpret_cast<float*>(memory);
    const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, g = thread % kWarp / 4, t = thread % 4;
    const int piece = static_cast<int>(blockIdx.x), row = static_cast<int>(blockIdx.z), group = heads / kv_heads;
    const int parts = (group + kHeads - 1) / kHeads, kv_head = static_cast<int>(blockIdx.y) / parts;
    const int first_head = kv_head * group + static_cast<int>(blockIdx.y) % parts * kHeads;
    const int left = (kv_head + 1) * group - first_head, present = left < kHeads ? left : kHeads;
    const int position = positions[row], whole = position < 0 ? 0 : position / kPageTokens;
    const long long result = (static_cast<long long>(row) * heads + first_head) * pieces + piece;
    const int first_page = piece * pages_per_piece, end = first_page + pages_per_piece, last_page = end < whole ? end : whole;
    const bool has_tail = position >= 0 && whole >= first_page && whole < end;
    if (first_page >= last_page && !has_tail) {
        if (thread < present) {
            summaries[(result + static_cast<long long>(thread) * pieces) * 2] = -infinity();
            summaries[(result + static_cast<long long>(thread) * pieces) * 2 + 1] = 0.0f;
        }
        return;
    }
    float* const query = shared;  // [8][D + 2]: the padding spreads heads over banks
    constexpr int kStride = kWidth + 2;
    const float factor = *scale * kLog2E;
    for (int i = thread; i < kHeads * kWidth; i += kAttentionThreads) {
        const int head = i / kWidth;
        const half_bits* source = queries + (static_cast<long long>(row) * heads + first_head + head) * kWidth + i % kWidth;
        query[head * kStride + i % kWidth] = head < present ? to_float(*source) * factor : 0.0f;
    }
    sync_block();

    State<kWidth> state;
    for (int index = first_page + warp; index < last_page; index += kWarps) {
        const long long place = static_cast<long long>(row) * table_width + index;
        const unsigned char* page = pool + (static_cast<long long>(page_table[place]) * kv_heads + kv_head) * page_bytes;
        Codes<kWidth> codes;
        codes.load(page, g, t);
        const int angle = (position - page_bases[place]) * half;
        float scores[16];
        score_codes<kWidth>(codes.keys, page, query + g * kStride, cosines + angle, sines + angle, half, interleaved, t, scores);
        weigh(state, scores);
        add_codes(state, codes.values, page, scores, t);
    }
    if (has_tail && warp == (whole - first_page) % kWarps) {
        const long long source = (static_cast<long long>(tails[row]) * kv_heads + kv_head) * kPageTokens * kWidth;
        const int base = page_bases[static_cast<long long>(row) * table_width + whole], angle = (position - base) * half;
        add_tail(state, key_tails + source, value_tails + source, query + g * kStride, cosines + angle, sines + angle, half, interleaved,
                 position % kPageTokens + 1, g, t);
    }
    // The query lies where the results go; write_piece waits for the block first.
    write_piece(state, shared, present, outputs + result * kWidth, summaries + result * 2, pieces, g, t);
}

#define WINDLASS_PAGED_ATTENTION(width, blocks)                                                                                                  \
    WINDLASS_KERNEL(kAttentionThreads, blocks)                                                                                                   \
    windlass_paged_attention_d##width(const half_bits* queries, const unsigned char* pool, const int* page_table, const int* page_bases,         \
                                      const half_bits* key_tails, const half_bits* value_tails, const int* tails, const int* positions,          \
                                      const float* cosines, const float* sines, const float* scale, int heads, int kv_heads, int page_bytes,     \
                                      int table_width, int half, int interleaved, int pages_per_piece, int pieces, float* outputs,               \
                                      float* summaries) {                                                                                        \
        attend<width>(queries, pool, page_table, page_bases, key_tails, value_tails, tails, positions, cosines, sines, scale, heads, kv_heads,  \
                      page_bytes, table_width, half, interleaved, pages_per_piece, pieces, outputs, summaries);                                  \
    }

WINDLASS_PAGED_ATTENTION(64, 3)
WINDLASS_PAGED_ATTENTION(128, 2)

// Pieces to results: a block takes a head, a thread a channel.
WINDLASS_KERNEL(256, 4)
windlass_attention_merge(const float* outputs, const float* summaries, int pieces, int width, half_bits* result) {
    const long long first = static_cast<long long>(blockIdx.x) * pieces;
    float largest = -infinity(), total = 0.0f;
    for (int piece = 0; piece < pieces; ++piece) largest = larger(largest, summaries[(first + piece) * 2]);
    for (int channel = static_cast<int>(threadIdx.x); channel < width; channel += 256) {
        float value = 0.0f;
        total = 0.0f;
        for (int piece = 0; piece < pieces; ++piece) {
            const float own = summaries[(first + piece) * 2];
            if (own == -infinity()) continue;
            const float factor = exp2_fast(own - largest);
            total += factor * summaries[(first + piece) * 2 + 1];
            value += factor * outputs[(first + piece) * width + channel];
        }
        result[static_cast<long long>(blockIdx.x) * width + channel] = to_half(total > 0.0f ? value / total : 0.0f);
    }
}
