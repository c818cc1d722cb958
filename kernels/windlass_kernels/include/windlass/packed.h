// Matrix product with weights of 8 or 4 bits: y[M, N] = x[M, K] w[N, K]^T, bitwise the same for a row whatever M is.
//
// Idea: activations become 8-bit integers too, one scale per token and group of K, so that a dot product runs in integers:
// exact in any order, four to eight times the multiply-adds of float32 per instruction. Only the sum over groups is in floats,
// always in ascending order, so a token's result depends on neither its batch, nor the threads, nor the tile.
//   8 bits: codes + 128, one scale per row of w; activation groups of 64.
//   4 bits: codes + 8, a scale per row and group of 32, 64 or 128; activation groups are the same.
// Layout: panels of 32 rows, so that a vector holds 4 consecutive k of 8 or 16 rows and rows never need a horizontal sum.
//   8 bits: [panel][K / 4][32 rows][4 k].
//   4 bits: [panel][K / 8][32 rows][4]: low nibbles k .. k + 3, high nibbles k + 4 .. k + 7.
// Traffic: N * K * bits / 8, plus N * K / group * 2 bytes of scales, once for up to kTileTokens tokens; beyond that a panel is
// read again from the second-level cache.
#pragma once
#include "windlass/pool.h"
#include "windlass/table.h"
#include "windlass/vec.h"

namespace windlass::WL_ISA {

constexpr int kPanelRows = 32;
constexpr int kWidestGroup = 128;

#if defined(WL_VNNI)

using Ints = __m512i;
constexpr int kIntLanes = 16;
constexpr bool kUnsigned8 = true;  // 8-bit codes are used with their offset, which the start value takes out again
WL_INLINE Ints all_of(int32_t i) { return _mm512_set1_epi32(i); }
WL_INLINE Ints load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
WL_INLINE Ints low_nibbles(Ints w) { return _mm512_and_si512(w, _mm512_set1_epi8(15)); }
WL_INLINE Ints high_nibbles(Ints w) { return _mm512_and_si512(_mm512_srli_epi16(w, 4), _mm512_set1_epi8(15)); }
WL_INLINE Ints dot8(Ints sum, Ints w, Ints x) { return _mm512_dpbusd_epi32(sum, w, x); }
WL_INLINE Ints dot4(Ints sum, Ints w, Ints x) { return _mm512_dpbusd_epi32(sum, w, x); }
WL_INLINE Vec to_floats(Ints i) { return _mm512_cvtepi32_ps(i); }

#elif defined(WL_AVX2)

using Ints = __m256i;
constexpr int kIntLanes = 8;
constexpr bool kUnsigned8 = false;
WL_INLINE Ints all_of(int32_t i) { return _mm256_set1_epi32(i); }
WL_INLINE Ints load_bytes(const uint8_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
WL_INLINE Ints low_nibbles(Ints w) { return _mm256_and_si256(w, _mm256_set1_epi8(15)); }
WL_INLINE Ints high_nibbles(Ints w) { return _mm256_and_si256(_mm256_srli_epi16(w, 4), _mm256_set1_epi8(15)); }
WL_INLINE Ints add_pairs(Ints sum, Ints products) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(products, _mm256_set1_epi16(1)));
}
// Pairs of products are added in 16 bits. 255 * 127 * 2 would not fit, so the sign moves from w to x: 127 * 127 * 2 does.
WL_INLINE Ints dot8(Ints sum, Ints w, Ints x) {
  const Ints code = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
  return add_pairs(sum, _mm256_maddubs_epi16(_mm256_abs_epi8(code), _mm256_sign_epi8(x, code)));
}
WL_INLINE Ints dot4(Ints sum, Ints w, Ints x) { return add_pairs(sum, _mm256_maddubs_epi16(w, x)); }
WL_INLINE Vec to_floats(Ints i) { return _mm256_cvtepi32_ps(i); }

#else

struct Ints { uint8_t bytes[16]; };  // four lanes of four bytes, or four 32-bit sums
constexpr int kIntLanes = 4;
constexpr bool kUnsigned8 = true;
WL_INLINE Ints all_of(int32_t i) {
  Ints v;
  for (int lane = 0; lane < 4; ++lane) std::memcpy(v.bytes + 4 * lane, &i, 4);
  return v;
}
WL_INLINE Ints load_bytes(const uint8_t* p) { Ints v; std::memcpy(v.bytes, p, 16); return v; }
WL_INLINE Ints low_nibbles(Ints w) { for (uint8_t& b : w.bytes) b &= 15; return w; }
WL_INLINE Ints high_nibbles(Ints w) { for (uint8_t& b : w.bytes) b >>= 4; return w; }
WL_INLINE Ints dot8(Ints sum, const Ints& w, const Ints& x) {
  int32_t sums[4];
  std::memcpy(sums, sum.bytes, 16);
  for (int i = 0; i < 16; ++i) sums[i / 4] += int32_t(w.bytes[i]) * int8_t(x.bytes[i]);
  std::memcpy(sum.bytes, sums, 16);
  return sum;
}
WL_INLINE Ints dot4(Ints sum, const Ints& w, const Ints& x) { return dot8(sum, w, x); }
WL_INLINE Vec to_floats(const Ints& i) {
  int32_t sums[4];
  std::memcpy(sums, i.bytes, 16);
  return Vec{float(sums[0]), float(sums[1]), float(sums[2]), float(sums[3])};
}

#endif

constexpr int kPanelVecs = kPanelRows / kIntLanes;
// Vectors of weights that one tile walks along together: enough independent sums to hide the latency of a dot product, and few
// enough that integer and float sums for each token stay in registers.
#if defined(WL_VNNI)
constexpr int kTileTokens = 5;
constexpr int tile_vecs(int tokens) { return tokens == 1 ? 2 * kPanelVecs : kPanelVecs; }
#else
constexpr int kTileTokens = 2;
constexpr int tile_vecs(int tokens) { return tokens == 1 ? kPanelVecs : kPanelVecs / 2; }
#endif

WL_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
WL_INLINE int64_t padded_to(int64_t a, int64_t step) { return (a + step - 1) / step * step; }

// Activations as the kernels read them. Padding beyond K is zero.
struct PackedX {
  const int8_t* codes;    // [M, padded K]
  const float* scales;    // [M, groups]
  const int32_t* starts;  // [M, groups]: minus the offset of the weights' codes times the sum of the group's codes
  int64_t k, groups;      // padded K; its groups
  const int32_t* order;   // groups to compute, ascending, or null for all; the others hold zeros alone and add nothing
  int64_t used;           // how many these are

  int64_t group_at(int64_t i) const { return order == nullptr ? i : order[i]; }
};

// One group of one token: codes and scale, and the sum of its codes. `fixed` is a scale chosen beforehand, 0 for none.
WL_INLINE int32_t quantize_group(const float* x, int64_t count, int64_t group, float fixed, int8_t* codes, float* scale) {
  // Magnitudes compared as integers: a NaN is larger than infinity and so reaches the scale, and with it every output.
  uint32_t largest_bits = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = bits_of_float(x[i]) & 0x7fffffffu;
    largest_bits = bits > largest_bits ? bits : largest_bits;
  }
  const float largest = float_of_bits(largest_bits);
  const bool usable = largest_bits < 0x7f800000u;
  *scale = !usable ? largest * 0.0f : fixed > 0.0f ? fixed : largest / 127.0f;
  // Below the smallest normal scale the quotient overflows; what is that small counts as zero.
  const float inverse = usable && *scale >= 0x1p-126f ? 1.0f / *scale : 0.0f;
  int32_t sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    float scaled = x[i] * inverse;
    scaled = scaled > 127.0f ? 127.0f : scaled;
    scaled = scaled < -127.0f ? -127.0f : scaled;
    // Adding and taking away 1.5 * 2^23 rounds to the nearest integer, ties to even, and vectorises everywhere.
    const float moved = scaled + 12582912.0f;
    const int32_t code = usable ? int32_t(bits_of_float(moved) - 0x4b400000u) : 0;
    codes[i] = int8_t(code);
    sum += code;
  }
  for (int64_t i = count; i < group; ++i) codes[i] = 0;
  return sum;
}

static PackedX quantize_rows(const PackedLinearArgs& a) {
  const int64_t k = padded_to(a.k, a.group), groups = k / a.group;
  const int64_t code_floats = padded_to(a.m * k, 64) / 4, scale_floats = padded_to(a.m * groups, 16);
  float* room = scratch(Scratch::kPackedX, size_t(code_floats + 2 * scale_floats));
  int8_t* codes = reinterpret_cast<int8_t*>(room);
  float* scales = room + code_floats;
  int32_t* starts = reinterpret_cast<int32_t*>(scales + scale_floats);
  const int32_t offset = a.bits == 4 ? 8 : kUnsigned8 ? 128 : 0;
  constexpr int64_t kSerialFloats = 16384;
  const int64_t per_chunk = kSerialFloats / (k + 1) + 1;
  for_chunks((a.m + per_chunk - 1) / per_chunk, [&](int64_t c) {
    for (int64_t m = c * per_chunk; m < least((c + 1) * per_chunk, a.m); ++m)
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t from = g * a.group, count = least(a.group, a.k - from);
        const int32_t sum = quantize_group(a.x + m * a.k + from, count, a.group, a.input_scale, codes + m * k + from,
                                           scales + m * groups + g);
        starts[m * groups + g] = -offset * sum;
      }
  });
  return {codes, scales, starts, k, groups, nullptr, groups};
}

// Compute only the groups that the listed columns touch. `order` has room for all groups.
WL_INLINE void choose_groups(const PackedLinearArgs& a, PackedX& x, int32_t* order) {
  int64_t used = 0;
  for (int64_t i = 0; i < a.columns.count; ++i) {
    const int64_t from = a.columns.ids[i] * kNeuronBlock / a.group;
    const int64_t to = least((a.columns.ids[i] + 1) * kNeuronBlock + a.group - 1, x.k) / a.group;
    for (int64_t g = from; g < to; ++g)
      if (used == 0 || order[used - 1] != g) order[used++] = int32_t(g);
  }
  x.order = order, x.used = used;
}

WL_INLINE Ints quad_of(const int8_t* codes) {
  int32_t quad;
  std::memcpy(&quad, codes, 4);
  return all_of(quad);
}

// Sums of one group: MT tokens against V vectors of rows. `w` holds V pointers, each to the group's first byte of its rows.
template <int Bits, int MT, int V>
WL_INLINE void dot_group(Ints (&sum)[MT][V], const uint8_t* const (&w)[V], const int8_t* x, int64_t ldx, int64_t group,
                         int64_t ahead) {
  constexpr int kStride = kPanelRows * 4;  // bytes from one quad (or octet) of a panel to the next
  if (Bits == 8) {
    for (int64_t k = 0; k < group; k += 4) {
      Ints row[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) row[v] = load_bytes(w[v] + k / 4 * kStride);
      if (MT == 1)
        for (int v = 0; v < V; v += kPanelVecs) {
          prefetch(w[v] + k / 4 * kStride + ahead);
          prefetch(w[v] + k / 4 * kStride + ahead + 64);
        }
#pragma GCC unroll 8
      for (int t = 0; t < MT; ++t) {
        const Ints quad = quad_of(x + t * ldx + k);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[t][v] = dot8(sum[t][v], row[v], quad);
      }
    }
    return;
  }
  for (int64_t k = 0; k < group; k += 8) {
    Ints row[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) row[v] = load_bytes(w[v] + k / 8 * kStride);
    if (MT == 1)
      for (int v = 0; v < V; v += kPanelVecs) {
        prefetch(w[v] + k / 8 * kStride + ahead);
        prefetch(w[v] + k / 8 * kStride + ahead + 64);
      }
#pragma GCC unroll 8
    for (int t = 0; t < MT; ++t) {
      const Ints first = quad_of(x + t * ldx + k), second = quad_of(x + t * ldx + k + 4);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[t][v] = dot4(sum[t][v], low_nibbles(row[v]), first);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[t][v] = dot4(sum[t][v], high_nibbles(row[v]), second);
    }
  }
}

// Tokens m .. m + MT - 1 against V vectors of rows, starting at vector `first` of panel `panel`.
template <int Bits, int MT, int V>
static void packed_product(const PackedLinearArgs& a, const PackedX& x, int64_t m, int64_t panel, int first) {
  const int64_t panel_bytes = x.k * kPanelRows * Bits / 8, group_bytes = a.group * kPanelRows * Bits / 8;
  const uint8_t* w[V];
  const Float16* w_scales[V];
  const float* row_scales[V];
  for (int v = 0; v < V; ++v) {
    const int64_t own = panel + (first + v) / kPanelVecs, lane = (first + v) % kPanelVecs * kIntLanes;
    w[v] = a.codes + own * panel_bytes + lane * 4;
    w_scales[v] = static_cast<const Float16*>(a.scales) + own * x.groups * kPanelRows + lane;
    row_scales[v] = static_cast<const float*>(a.scales) + own * kPanelRows + lane;
  }
  Vec total[MT][V];
  for (int t = 0; t < MT; ++t)
    for (int v = 0; v < V; ++v) total[t][v] = zero();
  constexpr int64_t kAhead = 2048;  // bytes of the stream of used groups
  for (int64_t i = 0; i < x.used; ++i) {
    const int64_t g = x.group_at(i), later = i + kAhead / group_bytes;
    const int64_t ahead = later < x.used ? (x.group_at(later) - g) * group_bytes : kAhead;
    const uint8_t* at[V];
    for (int v = 0; v < V; ++v) at[v] = w[v] + g * group_bytes;
    Ints sum[MT][V];
    for (int t = 0; t < MT; ++t)
      for (int v = 0; v < V; ++v) sum[t][v] = all_of(x.starts[(m + t) * x.groups + g]);
    dot_group<Bits, MT, V>(sum, at, x.codes + m * x.k + g * a.group, x.k, a.group, ahead);
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const Vec scale = Bits == 4 ? load(w_scales[v] + g * kPanelRows) : all(1.0f);
#pragma GCC unroll 8
      for (int t = 0; t < MT; ++t) {
        const Vec token = all(x.scales[(m + t) * x.groups + g]);
        total[t][v] = fma(to_floats(sum[t][v]), Bits == 4 ? mul(token, scale) : token, total[t][v]);
      }
    }
  }
  for (int v = 0; v < V; ++v) {
    const int64_t n = (panel + (first + v) / kPanelVecs) * kPanelRows + (first + v) % kPanelVecs * kIntLanes;
    const int count = int(least(kIntLanes, a.n - n));
    if (count <= 0) continue;
    for (int t = 0; t < MT; ++t) {
      Vec y = Bits == 4 ? total[t][v] : mul(total[t][v], load(row_scales[v]));
      float* out = a.y + (m + t) * a.n + n;
      if (a.bias != nullptr) y = add(y, count == kIntLanes ? load(a.bias + n) : load_first(a.bias + n, count));
      if (count == kIntLanes) store(out, y);
      else store_first(out, y, count);
    }
  }
}

// All tokens against `vecs` vectors of rows from `panel` on: one tile, or its halves for few registers.
template <int Bits, int MT>
WL_INLINE void packed_tokens(const PackedLinearArgs& a, const PackedX& x, int64_t m, int64_t panel, int panels) {
  constexpr int V = tile_vecs(MT);
  int first = 0;
  for (; first + V <= panels * kPanelVecs; first += V) packed_product<Bits, MT, V>(a, x, m, panel, first);
  if (V > kPanelVecs)
    for (; first < panels * kPanelVecs; first += kPanelVecs) packed_product<Bits, MT, kPanelVecs>(a, x, m, panel, first);
}

template <int Bits>
static void packed_panels(const PackedLinearArgs& a, const PackedX& x, int64_t panel, int panels) {
  int64_t m = 0;
  for (; m + kTileTokens <= a.m; m += kTileTokens) packed_tokens<Bits, kTileTokens>(a, x, m, panel, panels);
  switch (a.m - m) {
#if defined(WL_VNNI)
    case 4: return packed_tokens<Bits, 4>(a, x, m, panel, panels);
    case 3: return packed_tokens<Bits, 3>(a, x, m, panel, panels);
    case 2: return packed_tokens<Bits, 2>(a, x, m, panel, panels);
#endif
    case 1: return packed_tokens<Bits, 1>(a, x, m, panel, panels);
    default: return;
  }
}

template <int Bits>
static void packed_linear_of(const PackedLinearArgs& a) {
  PackedX x = quantize_rows(a);
  if (a.columns.ids != nullptr)
    choose_groups(a, x, reinterpret_cast<int32_t*>(scratch(Scratch::kOrder, size_t(x.groups))));
  constexpr int kPair = 2;  // panels that one tile of a single token walks along together
  static_assert(kPair * kPanelRows == kNeuronBlock, "a block of rows is a pair of panels");
  if (a.rows.ids != nullptr) {
    for_chunks(a.rows.count, [&](int64_t c) { packed_panels<Bits>(a, x, a.rows.ids[c] * kPair, kPair); });
    return;
  }
  const int64_t panels = (a.n + kPanelRows - 1) / kPanelRows, panel_bytes = x.k * kPanelRows * Bits / 8;
  const int64_t per_chunk = padded_to(64 * 1024 / panel_bytes + 1, kPair);
  for_chunks((panels + per_chunk - 1) / per_chunk, [&](int64_t c) {
    const int64_t to = least((c + 1) * per_chunk, panels);
    for (int64_t panel = c * per_chunk; panel < to; panel += kPair)
      packed_panels<Bits>(a, x, panel, int(least(kPair, to - panel)));
  });
}

static void packed_linear(const PackedLinearArgs& a) {
  if (a.bits == 4) packed_linear_of<4>(a);
  else packed_linear_of<8>(a);
}

// Rows of the matrix as float32: an embedding, straight from the weights that a tied head multiplies with.
static void packed_rows(const PackedRowsArgs& a) {
  const int64_t padded = padded_to(a.k, a.group), groups = padded / a.group;
  for_chunks(a.count, [&](int64_t i) {
    const int64_t panel = a.rows[i] / kPanelRows, lane = a.rows[i] % kPanelRows;
    const uint8_t* codes = a.codes + panel * padded * kPanelRows * a.bits / 8 + lane * 4;
    float* y = a.y + i * a.k;
    if (a.bits == 8) {
      const float scale = static_cast<const float*>(a.scales)[panel * kPanelRows + lane];
      for (int64_t k = 0; k < a.k; ++k) y[k] = float(int(codes[k / 4 * kPanelRows * 4 + k % 4]) - 128) * scale;
      return;
    }
    const Float16* scales = static_cast<const Float16*>(a.scales) + panel * groups * kPanelRows + lane;
    for (int64_t k = 0; k < a.k; ++k) {
      const uint8_t both = codes[k / 8 * kPanelRows * 4 + k % 4];
      const int code = k % 8 < 4 ? both & 15 : both >> 4;
      y[k] = float(code - 8) * widen(scales[k / a.group * kPanelRows]);
    }
  });
}

extern const PackedTable packed_table;
const PackedTable packed_table{packed_linear, packed_rows};

}  // namespace windlass::WL_ISA
