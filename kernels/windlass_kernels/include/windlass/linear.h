// Matrix product y[M, N] = x[M, K] w[N, K]^T, bitwise the same for a row whatever M is.
//
// Order, the same on every path: K is cut into blocks of 1024; within a block lane i adds products k = i, i + lanes, ... one
// after the other (fused multiply-add); the lanes fold by a fixed tree; block sums add in order; the bias comes last.
// Both operands run along K, so a tile of MR x NR accumulators needs MR + NR loads for MR * NR multiply-adds and no transpose.
// Weights are read where the checkpoint lies: no second copy.
//   M <= kDirectRows: weights stream once, straight into registers; traffic N * K * bytes(w) + M * K * 4.
//   above: x is copied into tiles (M * K * 8 bytes), a tile of weights into L1 as float32, used for 64 rows of x each time;
//   weights are read ceil(M / 64) times.
// Measured: float32, K = 768, N = 4096, 2 cores of Zen 4 with AVX-512, cold weights, 2026-11-24, a shared machine, best of many runs:
// M = 1 0.28 ms (45 GB/s), M = 8 0.43 ms; one core: M = 16 1.24 ms, M = 64 4.0 ms, M = 512 33 ms
// (torch in a separate run, weights warm: 1.84, 5.3, 40 ms).
#pragma once
#include "windlass/pool.h"
#include "windlass/table.h"
#include "windlass/vec.h"

namespace windlass::WL_ISA {

constexpr int64_t kBlockK = 1024;
constexpr int64_t kBlockM = 64;
constexpr int kTileM = 4;  // of the packed path
constexpr int kTileN = kRegisters == 32 ? 6 : 3;
constexpr int kDirectRows = kRegisters == 32 ? 8 : 4;

constexpr int direct_columns(int rows) {
  if (kRegisters == 32) return rows <= 3 ? 8 : rows == 4 ? 6 : rows == 5 ? 4 : rows == 6 ? 4 : 3;
  return rows == 1 ? 8 : rows == 2 ? 5 : rows == 3 ? 4 : 3;
}

WL_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
WL_INLINE int64_t rounded_up(int64_t a, int64_t step) { return (a + step - 1) / step * step; }

template <int MR, int NR>
struct Sums { Vec v[MR][NR]; };

template <int MR, int NR>
WL_INLINE void clear(Sums<MR, NR>& s) {
  for (int i = 0; i < MR; ++i)
    for (int j = 0; j < NR; ++j) s.v[i][j] = zero();
}

template <int MR, int NR>
WL_INLINE void multiply_add(Sums<MR, NR>& s, const float* x, const Vec (&w)[NR]) {
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i) {
    const Vec a = load(x + i * kLanes);
#pragma GCC unroll 8
    for (int j = 0; j < NR; ++j) s.v[i][j] = fma(a, w[j], s.v[i][j]);
  }
}

// Fold the tile and add it to y, or start y with it.
template <int MR, int NR>
WL_INLINE void deliver(const Sums<MR, NR>& s, float* y, int64_t ldy, bool first) {
  constexpr int kCount = MR * NR;
  float folded[kCount + 3];
  const Vec* flat = &s.v[0][0];
#pragma GCC unroll 8
  for (int i = 0; i + 4 <= kCount; i += 4) sum4(flat[i], flat[i + 1], flat[i + 2], flat[i + 3], folded + i);
#pragma GCC unroll 4
  for (int i = kCount / 4 * 4; i < kCount; ++i) folded[i] = sum(flat[i]);
  for (int i = 0; i < MR; ++i)
    for (int j = 0; j < NR; ++j) {
      float& out = y[i * ldy + j];
      out = first ? folded[i * NR + j] : out + folded[i * NR + j];
    }
}

// x: [k / lanes][MR][lanes], zero beyond K. w: NR checkpoint rows. k_from is a multiple of kLanes.
template <int MR, int NR, class T>
WL_INLINE void direct_range(Sums<MR, NR>& s, const float* x, const T* w, int64_t ldw, int64_t k_from, int64_t k_to, int64_t ahead) {
  Vec row[NR];
  int64_t k = k_from;
  for (; k + kLanes <= k_to; k += kLanes) {
#pragma GCC unroll 8
    for (int j = 0; j < NR; ++j) {
      prefetch(reinterpret_cast<const char*>(w + j * ldw + k) + ahead);
      row[j] = load(w + j * ldw + k);
    }
    multiply_add(s, x + k * MR, row);
  }
  if (k < k_to) {
    for (int j = 0; j < NR; ++j) row[j] = load_first(w + j * ldw + k, int(k_to - k));
    multiply_add(s, x + k * MR, row);
  }
}

// One tile of outputs. Leaving out columns whose x is zero leaves out additions of zero, so the sums stay what they were.
template <int MR, int NR, class T>
WL_INLINE void direct_tile(const LinearArgs& a, const float* x, int64_t n, int64_t ahead) {
  const T* w = static_cast<const T*>(a.weight) + n * a.k;
  int64_t next = 0;  // of the listed blocks
  for (int64_t k = 0; k < a.k; k += kBlockK) {
    const int64_t k_to = smaller(k + kBlockK, a.k);
    Sums<MR, NR> s;
    clear(s);
    if (a.columns.ids == nullptr) direct_range(s, x, w, a.k, k, k_to, ahead);
    for (; next < a.columns.count && a.columns.ids[next] * kNeuronBlock < k_to; ++next) {
      const int64_t from = a.columns.ids[next] * kNeuronBlock;
      direct_range(s, x, w, a.k, from, from + kNeuronBlock, ahead);
    }
    deliver(s, a.y + n, a.n, k == 0);
  }
}

// x as above; w: [k / lanes][NR][lanes] float32; next0, next1 walk through weights wanted soon.
template <int MR, int NR>
WL_INLINE void packed_tile(const float* x, const float* w, int64_t steps, float* y, int64_t ldy, bool first,
                           const char* next0, const char* next1, int64_t next_step) {
  Sums<MR, NR> s;
  clear(s);
  for (int64_t step = 0; step < steps; ++step) {
    Vec row[NR];
#pragma GCC unroll 8
    for (int j = 0; j < NR; ++j) row[j] = load(w + (step * NR + j) * kLanes);
    prefetch(next0 + step * next_step);
    prefetch(next1 + step * next_step);
    multiply_add(s, x + step * MR * kLanes, row);
  }
  deliver(s, y, ldy, first);
}

// Copy `rows` rows of x into one tile, [k / lanes][rows][lanes], zero beyond K.
WL_INLINE void pack_rows(const float* x, int64_t ldx, int64_t rows, int64_t k, float* out) {
  for (int64_t i = 0; i < rows; ++i) {
    int64_t at = 0;
    for (; at + kLanes <= k; at += kLanes) store(out + at * rows + i * kLanes, load(x + i * ldx + at));
    if (at < k) store(out + at * rows + i * kLanes, load_first(x + i * ldx + at, int(k - at)));
  }
}

template <class T, int NR>
WL_INLINE void pack_weights(const T* w, int64_t ldw, int64_t k_from, int64_t k_to, float* out) {
  int64_t k = k_from;
  for (; k + kLanes <= k_to; k += kLanes, out += NR * kLanes)
#pragma GCC unroll 8
    for (int j = 0; j < NR; ++j) store(out + j * kLanes, load(w + j * ldw + k));
  if (k < k_to)
    for (int j = 0; j < NR; ++j) store(out + j * kLanes, load_first(w + j * ldw + k, int(k_to - k)));
}

WL_INLINE void add_bias(const LinearArgs& a, int64_t m_from, int64_t m_to, int64_t n_from, int64_t n_to) {
  if (a.bias == nullptr) return;
  for (int64_t m = m_from; m < m_to; ++m)
    for (int64_t n = n_from; n < n_to; ++n) a.y[m * a.n + n] += a.bias[n];
}

template <int MR, class T>
static void direct_columns_of(const LinearArgs& a, const float* x, int64_t n_from, int64_t n_to) {
  constexpr int NR = direct_columns(MR);
  // Rows of one tile are short streams that the hardware prefetcher meets cold: ask for the next tile's.
  const int64_t tile_bytes = NR * a.k * int64_t(sizeof(T));
  const int64_t wanted_to = a.rows.ids == nullptr ? a.n : n_to;
  int64_t n = n_from;
  for (; n + NR <= n_to; n += NR) direct_tile<MR, NR, T>(a, x, n, n + 2 * NR <= wanted_to ? tile_bytes : 0);
  for (; n < n_to; ++n) direct_tile<MR, 1, T>(a, x, n, 0);
  add_bias(a, 0, MR, n_from, n_to);
}

template <int MR, class T>
static void linear_direct(const LinearArgs& a) {
  float* x = scratch(Scratch::kPackedX, size_t(MR * rounded_up(a.k, kLanes)));
  pack_rows(a.x, a.k, MR, a.k, x);
  constexpr int64_t NR = direct_columns(MR);
  if (a.rows.ids != nullptr) {
    for_chunks(a.rows.count, [&](int64_t c) {
      const int64_t n = a.rows.ids[c] * kNeuronBlock;
      direct_columns_of<MR, T>(a, x, n, n + kNeuronBlock);
    });
    return;
  }
  constexpr int64_t kChunkBytes = 128 * 1024;
  const int64_t per_chunk = rounded_up(kChunkBytes / (a.k * int64_t(sizeof(T))) + 1, NR);
  const int64_t chunks = (a.n + per_chunk - 1) / per_chunk;
  for_chunks(chunks, [&](int64_t c) {
    direct_columns_of<MR, T>(a, x, c * per_chunk, smaller((c + 1) * per_chunk, a.n));
  });
}

template <int NR>
WL_INLINE void packed_tile_rows(int64_t rows, const float* x, const float* w, int64_t steps, float* y, int64_t ldy, bool first,
                                const char* next0, const char* next1, int64_t next_step) {
  static_assert(kTileM == 4, "one case per row count");
  switch (rows) {
    case 4: return packed_tile<4, NR>(x, w, steps, y, ldy, first, next0, next1, next_step);
    case 3: return packed_tile<3, NR>(x, w, steps, y, ldy, first, next0, next1, next_step);
    case 2: return packed_tile<2, NR>(x, w, steps, y, ldy, first, next0, next1, next_step);
    default: return packed_tile<1, NR>(x, w, steps, y, ldy, first, next0, next1, next_step);
  }
}

// One tile of NR columns against rows m_from .. m_to (m_from a multiple of kTileM) for one block of K.
template <class T, int NR>
static void packed_columns(const LinearArgs& a, const float* x, float* tile, int64_t m_from, int64_t m_to, int64_t n, int64_t k,
                           bool more) {
  const int64_t k_to = smaller(k + kBlockK, a.k), steps = (k_to - k + kLanes - 1) / kLanes;
  const int64_t padded_k = rounded_up(a.k, kLanes), tiles = (m_to - m_from + kTileM - 1) / kTileM;
  const T* w = static_cast<const T*>(a.weight) + n * a.k;
  pack_weights<T, NR>(w, a.k, k, k_to, tile);
  const int64_t asked = (NR + tiles - 1) / tiles;  // rows of the next tile to ask for per tile of x; at most 2 are
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t m = m_from + t * kTileM, rows = smaller(kTileM, m_to - m);
    const bool useful = more && t * asked < NR;
    const T* next0 = w + (NR + smaller(t * asked, NR - 1)) * a.k + k;
    const T* next1 = asked > 1 ? w + (NR + smaller(t * asked + 1, NR - 1)) * a.k + k : next0;
    const char* idle = reinterpret_cast<const char*>(tile);
    packed_tile_rows<NR>(rows, x + m * padded_k + k * rows, tile, steps, a.y + m * a.n + n, a.n, k == 0,
                         useful ? reinterpret_cast<const char*>(next0) : idle,
                         useful ? reinterpret_cast<const char*>(next1) : idle, useful ? kLanes * int64_t(sizeof(T)) : 0);
  }
}

template <class T>
static void linear_packed(const LinearArgs& a) {
  const int64_t padded_k = rounded_up(a.k, kLanes), x_tiles = (a.m + kTileM - 1) / kTileM;
  float* x = scratch(Scratch::kPackedX, size_t(a.m * padded_k));
  const int64_t tiles_per_pack = 8;
  for_chunks((x_tiles + tiles_per_pack - 1) / tiles_per_pack, [&](int64_t c) {
    for (int64_t t = c * tiles_per_pack; t < smaller((c + 1) * tiles_per_pack, x_tiles); ++t) {
      const int64_t m = t * kTileM;
      pack_rows(a.x + m * a.k, a.k, smaller(kTileM, a.m - m), a.k, x + m * padded_k);
    }
  });
  const int64_t m_blocks = (a.m + kBlockM - 1) / kBlockM;
  const int64_t per_chunk = kTileN * 16, n_chunks = (a.n + per_chunk - 1) / per_chunk;
  for_chunks(m_blocks * n_chunks, [&](int64_t c) {
    float* tile = scratch(Scratch::kWeightTile, kTileN * kBlockK);
    const int64_t m_from = c / n_chunks * kBlockM, m_to = smaller(m_from + kBlockM, a.m);
    const int64_t n_from = c % n_chunks * per_chunk, n_to = smaller(n_from + per_chunk, a.n);
    for (int64_t k = 0; k < a.k; k += kBlockK) {
      int64_t n = n_from;
      for (; n + kTileN <= n_to; n += kTileN)
        packed_columns<T, kTileN>(a, x, tile, m_from, m_to, n, k, n + 2 * kTileN <= a.n);
      for (; n < n_to; ++n) packed_columns<T, 1>(a, x, tile, m_from, m_to, n, k, false);
    }
    add_bias(a, m_from, m_to, n_from, n_to);
  });
}

template <class T>
static void linear_of(const LinearArgs& a) {
  if (a.m > kDirectRows) return linear_packed<T>(a);
  switch (a.m) {
    case 1: return linear_direct<1, T>(a);
    case 2: return linear_direct<2, T>(a);
    case 3: return linear_direct<3, T>(a);
    case 4: return linear_direct<4, T>(a);
#if defined(WL_AVX512) || defined(__aarch64__)
    case 5: return linear_direct<5, T>(a);
    case 6: return linear_direct<6, T>(a);
    case 7: return linear_direct<7, T>(a);
    case 8: return linear_direct<8, T>(a);
#endif
    default: return;
  }
}

static void linear(const LinearArgs& a) {
  switch (a.storage) {
    case kFloat32: return linear_of<float>(a);
    case kBfloat16: return linear_of<Bfloat16>(a);
    default: return linear_of<Float16>(a);
  }
}

}  // namespace windlass::WL_ISA
