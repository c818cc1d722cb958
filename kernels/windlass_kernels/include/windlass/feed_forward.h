// The feed-forward chain of a decoder layer in one call: gate and up, SiLU, down; dense, or only the blocks that are wanted.
//
// Idea: which of the F / 64 blocks a token uses is decided by that token alone, so neighbours in a batch never change a result.
// How they are computed is a question of speed: block by block over the union of all rows, or densely with the unwanted blocks
// of each row set to zero. Both give the same bits, because leaving out a product with zeros leaves out an addition of zero.
// Traffic at density d: d * 3 * E * F weights where blocks are predicted (plus R * E + R * F / 64 for the predictor), and
// (1 + 2 d) * E * F where the gates themselves decide.
#pragma once
#include <cstring>

#include "windlass/pool.h"
#include "windlass/table.h"

namespace windlass {

// A matrix [N, K] in any format. Mirrored by `feed_forward.py`.
struct Matrix {
  const void* data;    // floats as in the checkpoint, or codes in panels
  const void* scales;  // of codes
  const float* bias;   // [N] or null
  int64_t n, k, group;
  float input_scale;
  int32_t format;  // 0, 1, 2: a Storage; 8, 4: bits
};

enum Selection : int32_t { kDense = 0, kPredicted = 1, kByGate = 2 };

// One layer. Mirrored by `feed_forward.py`.
struct FeedForward {
  Matrix gate_up;      // [2F, E]
  Matrix down;         // [E, F]
  Matrix narrow;       // [R, E], the predictor's first product
  const float* wide;   // [blocks, R], its second
  const float* bias;   // [blocks], added to it
  const float* norms;  // [F]
  int64_t sparse_rows;  // most rows that are computed block by block
  float cut;            // score above which a block is wanted
  float dense_above;    // share of blocks in the union above which all are computed
  int32_t selection;
};

struct FeedForwardArgs {
  const FeedForward* layer;
  const float* x;           // [M, E]
  const float* hints;       // [M, E]: what the predictor sees
  const uint8_t* all_rows;  // [M]: not 0 where a row uses all blocks
  float* room;              // [M, 3F]
  float* y;                 // [M, E]
  uint8_t* active;          // [M, blocks], written unless dense
  float* mass;              // [M, blocks] or null; asking for it computes all blocks
  int64_t m;
};

inline void multiply(const KernelTable& kernels, const PackedTable& packed, const Matrix& w, const float* x, float* y, int64_t m,
                     Blocks rows = {}, Blocks columns = {}) {
  if (w.format == 8 || w.format == 4)
    packed.linear({x, static_cast<const uint8_t*>(w.data), w.scales, w.bias, y, m, w.n, w.k, w.group, w.input_scale, w.format, rows,
                   columns});
  else
    kernels.linear({x, w.data, w.bias, y, m, w.n, w.k, w.format, rows, columns});
}

// Blocks that some row wants, ascending; returns how many.
inline int64_t unite(const uint8_t* active, int64_t m, int64_t blocks, int32_t* ids) {
  int64_t count = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    bool wanted = false;
    for (int64_t row = 0; row < m; ++row) wanted |= active[row * blocks + b] != 0;
    if (wanted) ids[count++] = int32_t(b);
  }
  return count;
}

// Ask the predictor which blocks each row wants.
inline void predict(const KernelTable& kernels, const PackedTable& packed, const FeedForwardArgs& a, int64_t blocks) {
  const FeedForward& layer = *a.layer;
  float* features = scratch(Scratch::kFeatures, size_t(a.m * layer.narrow.n));
  multiply(kernels, packed, layer.narrow, a.hints, features, a.m);
  kernels.predict_blocks({features, layer.wide, layer.bias, a.active, a.m, blocks, layer.narrow.n, layer.cut});
}

// Append the blocks `offset + id`; all `count` of them in order where `ids` is null.
inline void append(Blocks& list, int32_t* room, const int32_t* ids, int64_t count, int64_t offset) {
  for (int64_t i = 0; i < count; ++i) room[list.count++] = int32_t(offset + (ids == nullptr ? i : ids[i]));
}

// Returns the number of blocks in the union if only these were computed, -1 if all were.
inline int64_t feed_forward(const KernelTable& kernels, const PackedTable& packed, const FeedForwardArgs& a) {
  const FeedForward& layer = *a.layer;
  const int64_t f = layer.down.k, blocks = f / kNeuronBlock;
  float* gate_up = a.room;
  float* gated = a.room + a.m * 2 * f;
  if (layer.selection == kDense) {
    multiply(kernels, packed, layer.gate_up, a.x, gate_up, a.m);
    kernels.silu_mul({gate_up, gated, a.m, f});
    multiply(kernels, packed, layer.down, gated, a.y, a.m);
    return -1;
  }
  const bool by_gate = layer.selection == kByGate;
  bool all = a.mass != nullptr || a.m > layer.sparse_rows || a.m > kernels.direct_rows;
  for (int64_t m = 0; m < a.m; ++m) all |= a.all_rows[m] != 0;
  auto* ids = reinterpret_cast<int32_t*>(scratch(Scratch::kBlocks, size_t(3 * blocks)));
  Blocks rows{ids + blocks, 0};  // of gate_up: gates, then ups
  const bool gates_known = by_gate && !all;
  if (gates_known) append(rows, ids + blocks, nullptr, blocks, 0);
  if (by_gate) {
    multiply(kernels, packed, layer.gate_up, a.x, gate_up, a.m, all ? Blocks{} : rows);
    kernels.score_gates({gate_up, layer.norms, a.active, a.m, f, layer.cut});
  } else {
    predict(kernels, packed, a, blocks);
  }
  for (int64_t m = 0; m < a.m; ++m)
    if (a.all_rows[m] != 0) std::memset(a.active + m * blocks, 1, size_t(blocks));
  const int64_t count = all ? blocks : unite(a.active, a.m, blocks, ids);
  all |= float(count) > layer.dense_above * float(blocks);
  rows.count = 0;
  if (!gates_known && !all) append(rows, ids + blocks, ids, count, 0);
  append(rows, ids + blocks, all ? nullptr : ids, all ? blocks : count, blocks);
  if (gates_known || !all) multiply(kernels, packed, layer.gate_up, a.x, gate_up, a.m, rows);
  else if (!by_gate) multiply(kernels, packed, layer.gate_up, a.x, gate_up, a.m);
  kernels.silu_mul_active({gate_up, a.active, layer.norms, gated, a.mass, a.m, f});
  multiply(kernels, packed, layer.down, gated, a.y, a.m, Blocks{}, all ? Blocks{} : Blocks{ids, count});
  return all ? -1 : count;
}

}  // namespace windlass
