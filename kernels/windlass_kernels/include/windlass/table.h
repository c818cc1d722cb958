// What one instruction set offers: a table of ops. Each translation unit under cpu/ fills one; the entry picks it at run time.
// Arguments are raw pointers to contiguous arrays; the Python side has checked shapes and types.
#pragma once
#include <cstdint>

namespace windlass {

enum Storage : int32_t { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };

constexpr int64_t kPageTokens = 64;
constexpr int64_t kNeuronBlock = 64;  // rows or columns of a weight that are computed or left out together

// Some blocks of one dimension, ascending, each once; null: the whole dimension.
struct Blocks {
  const int32_t* ids;
  int64_t count;
};

struct LinearArgs {
  const float* x;      // [M, K]
  const void* weight;  // [N, K] of `storage`
  const float* bias;   // [N] or null
  float* y;            // [M, N]
  int64_t m, n, k;
  int32_t storage;
  Blocks rows{};     // of the weight: only these columns of y are written. With either list M is at most `direct_rows`
  Blocks columns{};  // x is zero outside of these
};

struct NormArgs {
  float* x;            // [M, F]; gains `delta` first where that is set
  const float* delta;  // [M, F] or null
  const float* weight; // [F]
  float* y;            // [M, F]
  int64_t m, f;
  float eps;
};

struct SiluArgs {
  const float* gate_up;  // [M, 2F]
  float* y;              // [M, F]
  int64_t m, f;
};

struct GatedArgs {
  const float* gate_up;   // [M, 2F]; read only where `active`, or everywhere for `mass`
  const uint8_t* active;  // [M, F / 64]
  const float* norms;     // [F]: size of each neuron's column of the projection that follows; only read for `mass`
  float* y;               // [M, F]: zero where not active
  float* mass;            // [M, F / 64] sum of (y * norm)^2 of each block, active or not; or null
  int64_t m, f;
};

struct PredictArgs {
  const float* features;  // [M, R]
  const float* weight;    // [blocks, R]
  const float* bias;      // [blocks]
  uint8_t* active;        // [M, blocks]
  int64_t m, blocks, rank;
  float cut;  // share of a row's output above which a block is wanted
};

struct GateScoreArgs {
  const float* gate_up;  // [M, 2F], gates first; ups are not read
  const float* norms;    // [F], as above
  uint8_t* active;       // [M, blocks]
  int64_t m, f;
  float cut;
};

struct RopeArgs {
  const float* qkv;          // [T, (H + 2G) * D]
  const float* cos;          // [L, C]
  const float* sin;          // [L, C]
  const int32_t* positions;  // [T]
  const int32_t* key_angles; // [T]: rows of cos and sin that keys are turned by; queries by those of their positions
  const int32_t* slots;      // [T]; negative: nothing is stored
  void* key_pages;           // [P, G, 64, D] of `storage`
  void* value_pages;         // the same
  const float* q_norm;       // [D] or null
  const float* k_norm;       // [D] or null
  float* q;                  // [T, H, D]
  int64_t tokens, heads, kv_heads, width, half;
  float eps;
  int32_t interleaved, storage;
};

struct AttentionArgs {
  const float* query;         // [T, H, D]
  const void* key_pages;      // [P, G, 64, D] of `storage`
  const void* value_pages;    // the same
  const int32_t* page_table;  // [R, B]
  const int32_t* row_of;      // [T]
  const int32_t* positions;   // [T]
  float* y;                   // [T, H, D]
  int64_t tokens, heads, kv_heads, width, table_width, window;
  float scale;
  int32_t storage;
};

// Pages as page_format.py has them; the tail is the float pages that collect what is not full yet.
struct StoredAttentionArgs {
  const float* query;         // [T, H, D], turned by their positions
  const uint8_t* pages;       // [P, G, size]
  const void* tail_keys;      // [F, G, 64, D] of `storage`, keys turned by their place in the page
  const void* tail_values;    // the same
  const int32_t* page_table;  // [R, B]
  const int32_t* tail_of;     // [T]: the float page with the token's own page
  const int32_t* row_of;      // [T]
  const int32_t* positions;   // [T]
  const float* base_cos;      // [B, C]: the angles of each page's first position; neighbours are pairs
  const float* base_sin;      // [B, C]
  float* y;                   // [T, H, D]
  int64_t tokens, heads, kv_heads, width, half, table_width, window;
  float scale;
  int32_t bits, storage;
};

struct QuantizePagesArgs {
  const void* tail_keys;    // [F, G, 64, D] of `storage`
  const void* tail_values;  // the same
  const int32_t* tails;     // [count]
  const int32_t* page_ids;  // [count]
  uint8_t* pages;           // [P, G, size]
  int64_t count, kv_heads, width;
  int32_t bits, storage;
};

struct PackedLinearArgs {
  const float* x;        // [M, K]
  const uint8_t* codes;  // panels, see packed.h
  const void* scales;    // 8 bits: [panels, 32] float; 4 bits: [panels, groups, 32] float16
  const float* bias;     // [N] or null
  float* y;              // [M, N]
  int64_t m, n, k, group;
  float input_scale;  // scale of the activations' codes; 0: chosen per token and group
  int32_t bits;
  Blocks rows{};     // of the weight: only these columns of y are written
  Blocks columns{};  // x is zero outside of these
};

struct PackedRowsArgs {
  const int32_t* rows;   // [count], each below N
  const uint8_t* codes;  // as above
  const void* scales;
  float* y;  // [count, K]
  int64_t count, k, group;
  int32_t bits;
};

// The ops on weights of 8 and 4 bits: a table of their own, because they want instructions that AVX-512 alone does not promise.
struct PackedTable {
  void (*linear)(const PackedLinearArgs&);
  void (*rows)(const PackedRowsArgs&);
};

struct KernelTable {
  const char* name;
  int64_t direct_rows;  // most rows of x that `linear` takes with lists of blocks
  float (*read_all)(const float* p, int64_t count);
  void (*linear)(const LinearArgs&);
  void (*norm)(const NormArgs&);
  void (*silu_mul)(const SiluArgs&);
  void (*silu_mul_active)(const GatedArgs&);
  void (*predict_blocks)(const PredictArgs&);
  void (*score_gates)(const GateScoreArgs&);
  void (*rope_and_store)(const RopeArgs&);
  void (*paged_attention)(const AttentionArgs&);
  void (*stored_attention)(const StoredAttentionArgs&);
  void (*quantize_pages)(const QuantizePagesArgs&);
};

}  // namespace windlass
