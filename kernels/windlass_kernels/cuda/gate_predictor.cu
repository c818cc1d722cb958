// Which blocks of 64 FFN neurons a step needs: a small product, its positive part, a second product, a cut per block,
// and the list of blocks that any token wants, in order.
//
// One block does it all, so the list is complete when the next kernel starts and nothing goes back to the host. It reads
// R H + 2 R F / 64 bytes at the speed of one processor, which is meant to be hidden behind the attention of the same
// layer on a second stream: its input is known before the layer. Not yet measured on a GPU.
#include "product.cuh"

constexpr int kPredictorThreads = 1024, kPredictorWarps = kPredictorThreads / kWarp, kMaxRank = 64, kMaxBlocks = 1024;

// Sums of the splits, then the features as float16 [8][R], flags [1024], totals of warps [32].
constexpr int kSplitsBytes = kPredictorWarps * kStripRows * kTokens * 4, kFeaturesBytes = kTokens * kMaxRank * 2;

// The positive part of [H] times [R, H] for each token, as float16 [8][R]; rows of absent tokens are zero.
WINDLASS_DEVICE void project(const half_bits* x, const unsigned char* codes, const float* scales, int tokens, int hidden, int rank, float* splits,
                             half_bits* features, Lane lane) {
    const int warp = static_cast<int>(threadIdx.x) / kWarp, thread = static_cast<int>(threadIdx.x);
    const int strips = rank / kStripRows, workers = kPredictorWarps / strips;
    if (warp < strips * workers) {
        const Strip<Int8> strip(codes, scales, warp / workers * kStripRows, rank, hidden, hidden, lane);
        float sum[4] = {};
        multiply_strip(sum, strip, x, tokens, hidden, hidden, warp % workers, workers, lane);
        float* mine = splits + warp * kStripRows * kTokens;
#pragma unroll
        for (int j = 0; j < 4; ++j) mine[(2 * lane.t + j % 2) * kStripRows + lane.g + 8 * (j / 2)] = sum[j];
    }
    sync_block();
    if (thread < rank * kTokens) {
        const int token = thread / rank, feature = thread % rank;
        float total = 0.0f;
        for (int i = 0; i < workers; ++i) {
            total += splits[((feature / kStripRows * workers + i) * kTokens + token) * kStripRows + feature % kStripRows];
        }
        features[thread] = to_half(larger(total * scales[feature], 0.0f));
    }
    sync_block();
}

// flags[b] = whether any token's score of block b lies above its cut.
WINDLASS_DEVICE void choose_blocks(const half_bits* features, const half_bits* wide, const float* cuts, int tokens, int rank, int blocks,
                                   unsigned* flags, Lane lane) {
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    for (int row = warp * kStripRows; row < blocks; row += kPredictorWarps * kStripRows) {
        const int first = row + lane.g, second = first + 8;
        const half_bits* upper = wide + (first < blocks ? first : blocks - 1) * rank + 2 * lane.t;
        const half_bits* lower = wide + (second < blocks ? second : blocks - 1) * rank + 2 * lane.t;
        const half_bits* x = features + lane.g * rank + 2 * lane.t;
        float sum[4] = {};
        for (int k = 0; k < rank; k += 16) {
            multiply_tile(sum, load4(upper + k), load4(lower + k), load4(upper + k + 8), load4(lower + k + 8), load4(x + k), load4(x + k + 8));
        }
        unsigned wanted[2] = {};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int token = 2 * lane.t + j % 2, block = row + lane.g + 8 * (j / 2);
            if (token < tokens && block < blocks && sum[j] > cuts[block]) wanted[j / 2] = 1;
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            wanted[half] |= shuffle_xor(wanted[half], 1);
            wanted[half] |= shuffle_xor(wanted[half], 2);
            const int block = row + lane.g + 8 * half;
            if (lane.t == 0 && block < blocks) flags[block] = wanted[half];
        }
    }
    sync_block();
}

WINDLASS_KERNEL(kPredictorThreads, 1)
windlass_gate_predictor(const half_bits* x, const unsigned char* narrow_codes, const float* narrow_scales, const half_bits* wide, const float* cuts,
                        int tokens, int hidden, int rank, int blocks, int dense_above, int* active, int* count) {
    WINDLASS_SHARED(shared);
    float* const splits = reinterpret_cast<float*>(shared);
    half_bits* const features = reinterpret_cast<half_bits*>(shared + kSplitsBytes);
    unsigned* const flags = reinterpret_cast<unsigned*>(shared + kSplitsBytes + kFeaturesBytes);
    unsigned* const totals = flags + kMaxBlocks;
    const Lane lane;
    const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp;
    project(x, narrow_codes, narrow_scales, tokens, hidden, rank, splits, features, lane);
    choose_blocks(features, wide, cuts, tokens, rank, blocks, flags, lane);

    const bool wanted = thread < blocks && flags[thread] != 0;
    const unsigned votes = vote_warp(wanted);
    if (thread % kWarp == 0) totals[warp] = count_bits(votes);
    sync_block();
    int before = count_bits(votes & ((1u << thread % kWarp) - 1)), all = 0;
    for (int i = 0; i < kPredictorWarps; ++i) {
        before += i < warp ? totals[i] : 0;
        all += totals[i];
    }
    const bool dense = all > dense_above;
    if (thread == 0) *count = dense ? blocks : all;
    if (thread < blocks) {
        if (dense) {
            active[thread] = thread;
        } else {
            if (wanted) active[before] = thread;
            if (thread >= all) active[thread] = -1;
        }
    }
}
