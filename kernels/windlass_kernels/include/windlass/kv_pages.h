// Key/value pages of 4 and 8 bits: quantising a full page, and attention over such pages. page_format.py defines the bytes.
//
// Idea: scores are a product along the channels, results one along the tokens, and both matrices of codes lie along what is
// summed. So one routine serves both: broadcast a factor, widen a row of codes in registers, multiply and add; no sum across
// lanes. Scales are part of the factors, minima one number per query and page. The query is turned back by the position of
// each page, as keys are turned by their place in the page only. A token's own page is still in floats, in the tail.
// Order: as in attention.h, pages oldest first, sums along the channels or tokens in ascending order. A run of many queries
// widens a page once into memory; the numbers it multiplies, and their order, are those of a query alone.
// Traffic: positions * (D + 8) bytes per token run and key/value head in 4 bits, D = 64; 3.6 times less than float16.
// Measured: benchmarks/kv_reuse.py, docs/benchmarks.md.
#pragma once
#include "windlass/attention.h"

namespace windlass::WL_ISA {

// Offsets of the parts of a head page, in bytes.
struct PageLayout {
  int64_t codes, key_scale, key_minimum, value_codes, value_scale, value_minimum, size, groups;
};

WL_INLINE PageLayout page_layout(int64_t width, int64_t bits) {
  PageLayout l;
  l.groups = (width + kPageTokens - 1) / kPageTokens;
  l.codes = kPageTokens * width * bits / 8;
  l.key_scale = l.codes;
  l.key_minimum = l.key_scale + 2 * width;
  l.value_codes = l.key_minimum + 2 * width;
  l.value_scale = l.value_codes + l.codes;
  l.value_minimum = l.value_scale + 2 * l.groups * kPageTokens;
  l.size = l.value_minimum + 2 * l.groups * kPageTokens;
  return l;
}

// kLanes codes of 8 bits as floats.
WL_INLINE Vec widen_codes(const uint8_t* p) {
#if defined(WL_AVX512)
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif defined(WL_AVX2)
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
  return Vec{float(p[0]), float(p[1]), float(p[2]), float(p[3])};
#endif
}

// 2 * kLanes codes of 4 bits as floats: those in the low halves of kLanes bytes, and those in the high halves.
WL_INLINE void widen_pairs(const uint8_t* p, Vec& low, Vec& high) {
#if defined(WL_AVX512)
  // A permutation looks at the low four bits of each index only: a conversion without a mask.
  const Vec numbers = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
  low = _mm512_permutexvar_ps(bytes, numbers);
  high = _mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), numbers);
#elif defined(WL_AVX2)
  const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
  low = _mm256_cvtepi32_ps(_mm256_and_si256(bytes, _mm256_set1_epi32(15)));
  high = _mm256_cvtepi32_ps(_mm256_srli_epi32(bytes, 4));
#else
  for (int i = 0; i < kLanes; ++i) low[i] = float(p[i] & 15), high[i] = float(p[i] >> 4);
#endif
}

// Where the codes of a matrix [K, N] come from: packed in a page, or widened before.
template <int BITS>
struct Packed {
  const uint8_t* codes;  // rows of `stride` bytes: two neighbours along K in each byte, or one in 8 bits
  int64_t stride;
};
struct Widened {
  const float* codes;  // [K][stride]
  int64_t stride;
};

template <int MR, int NV>
WL_INLINE void multiply_row(Sums<MR, NV>& s, const float* factors, int64_t factor_stride, const Vec* row) {
#pragma GCC unroll 4
  for (int i = 0; i < MR; ++i) {
    const Vec factor = all(factors[i * factor_stride]);
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) s.v[i][j] = fma(factor, row[j], s.v[i][j]);
  }
}

// s[i][n .. n + NV vectors] += sum over k of factors[i][k] * codes[k][n], k ascending; `rows` is K, an even number.
template <int MR, int NV>
WL_INLINE void sum_codes(Sums<MR, NV>& s, const float* factors, int64_t factor_stride, Packed<4> from, int64_t n, int64_t rows) {
  for (int64_t k = 0; k < rows; k += 2) {
    Vec low[NV], high[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) widen_pairs(from.codes + k / 2 * from.stride + n + j * kLanes, low[j], high[j]);
    multiply_row(s, factors + k, factor_stride, low);
    multiply_row(s, factors + k + 1, factor_stride, high);
  }
}

template <int MR, int NV>
WL_INLINE void sum_codes(Sums<MR, NV>& s, const float* factors, int64_t factor_stride, Packed<8> from, int64_t n, int64_t rows) {
  for (int64_t k = 0; k < rows; ++k) {
    Vec row[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) row[j] = widen_codes(from.codes + k * from.stride + n + j * kLanes);
    multiply_row(s, factors + k, factor_stride, row);
  }
}

template <int MR, int NV>
WL_INLINE void sum_codes(Sums<MR, NV>& s, const float* factors, int64_t factor_stride, Widened from, int64_t n, int64_t rows) {
  for (int64_t k = 0; k < rows; ++k) {
    Vec row[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) row[j] = load(from.codes + k * from.stride + n + j * kLanes);
    multiply_row(s, factors + k, factor_stride, row);
  }
}

// What becomes of a sum: a score of its own, or an addition to a result.
struct Product {
  const float* factors;  // [MR][64 or more], `factor_stride` apart
  int64_t factor_stride, rows;
  const float* constants;  // [MR], added to each sum
  float* out;              // [MR], `out_stride` apart
  int64_t out_stride;
};

template <int MR, int NV, bool kAdd, class From>
WL_INLINE void product_tile(const Product& p, From from, int64_t n, float scale) {
  Sums<MR, NV> s;
  clear(s);
  sum_codes(s, p.factors, p.factor_stride, from, n, p.rows);
  for (int i = 0; i < MR; ++i)
    for (int j = 0; j < NV; ++j) {
      float* out = p.out + i * p.out_stride + n + j * kLanes;
      const Vec total = add(s.v[i][j], all(p.constants[i]));
      store(out, kAdd ? add(load(out), total) : mul(total, all(scale)));
    }
}

template <int MR, bool kAdd, class From>
static void product_rows(const Product& p, From from, int64_t columns, float scale) {
  constexpr int NV = kRegisters == 32 ? 4 : 2;
  int64_t n = 0;
  for (; n + NV * kLanes <= columns; n += NV * kLanes) product_tile<MR, NV, kAdd>(p, from, n, scale);
  for (; n < columns; n += kLanes) product_tile<MR, 1, kAdd>(p, from, n, scale);
}

template <bool kAdd, class From>
static void product(Product p, int64_t queries, From from, int64_t columns, float scale) {
  for (int64_t q = 0; q < queries; q += kScoreTile) {
    Product tile = p;
    tile.factors += q * p.factor_stride, tile.constants += q, tile.out += q * p.out_stride;
    switch (queries - q) {
      case 1: product_rows<1, kAdd>(tile, from, columns, scale); break;
      case 2: product_rows<2, kAdd>(tile, from, columns, scale); break;
      case 3: product_rows<3, kAdd>(tile, from, columns, scale); break;
      default: product_rows<4, kAdd>(tile, from, columns, scale); break;
    }
  }
}

WL_INLINE void widen_matrix(Packed<4> from, int64_t rows, int64_t columns, float* out, int64_t stride) {
  for (int64_t k = 0; k < rows; k += 2)
    for (int64_t n = 0; n < columns; n += kLanes) {
      Vec low, high;
      widen_pairs(from.codes + k / 2 * from.stride + n, low, high);
      store(out + k * stride + n, low);
      store(out + (k + 1) * stride + n, high);
    }
}

WL_INLINE void widen_matrix(Packed<8> from, int64_t rows, int64_t columns, float* out, int64_t stride) {
  for (int64_t k = 0; k < rows; ++k)
    for (int64_t n = 0; n < columns; n += kLanes) store(out + k * stride + n, widen_codes(from.codes + k * from.stride + n));
}

// The buffers of one run. Q queries, W the larger of D and 64.
struct StoredRun {
  float* turned;     // [Q][D]
  float* factors;    // [Q][W]
  float* constants;  // [Q]
  float* scale;      // [W], of the page at hand
  float* minimum;    // [W]
  float* widened;    // [K][N] of one matrix
  int64_t wide;      // W
};

WL_INLINE void widen_halves(const uint8_t* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += kLanes) store(to + i, load(reinterpret_cast<const Float16*>(from) + i));
}

// factors[k] = given[k] * scale[k]; returns the sum of given[k] * minimum[k].
WL_INLINE float fold_scales(const float* given, const StoredRun& r, int64_t count, float* factors) {
  Vec total = zero();
  for (int64_t k = 0; k < count; k += kLanes) {
    const Vec x = load(given + k);
    store(factors + k, mul(x, load(r.scale + k)));
    total = fma(x, load(r.minimum + k), total);
  }
  return sum(total);
}

// Turn a query back by the position of a page, neighbours being pairs.
WL_INLINE void turn_back(const float* query, const float* cos, const float* sin, int64_t half, int64_t width, float* to) {
  for (int64_t i = 0; i < half; ++i) {
    const float x = query[2 * i], y = query[2 * i + 1];
    to[2 * i] = x * cos[i] + y * sin[i];
    to[2 * i + 1] = y * cos[i] - x * sin[i];
  }
  for (int64_t i = 2 * half; i < width; ++i) to[i] = query[i];
}

WL_INLINE void turn_run(const StoredAttentionArgs& a, const Run& run, int64_t head, int64_t page_index, int64_t queries, float* to) {
  const int64_t group = a.heads / a.kv_heads;
  const float* cos = a.base_cos + page_index * a.half;
  const float* sin = a.base_sin + page_index * a.half;
  for (int64_t q = 0; q < queries; ++q)
    turn_back(a.query + ((run.token + q / group) * a.heads + head * group + q % group) * a.width, cos, sin, a.half, a.width,
              to + q * a.width);
}

// One stored page, for the first `queries` queries of a run; query q sees the page from from(q) on.
template <int BITS, class FirstSeen>
static void attend_stored(const StoredAttentionArgs& a, Softmax& s, StoredRun& r, const uint8_t* page, int64_t queries,
                          FirstSeen first) {
  const PageLayout l = page_layout(a.width, BITS);
  const bool many = queries > kScoreTile;
  widen_halves(page + l.key_scale, a.width, r.scale);
  widen_halves(page + l.key_minimum, a.width, r.minimum);
  for (int64_t q = 0; q < queries; ++q)
    r.constants[q] = fold_scales(r.turned + q * a.width, r, a.width, r.factors + q * r.wide);
  const Product scores{r.factors, r.wide, a.width, r.constants, s.scores, kPageTokens};
  const Packed<BITS> keys{page, kPageTokens};
  if (many) {
    widen_matrix(keys, a.width, kPageTokens, r.widened, kPageTokens);
    product<false>(scores, queries, Widened{r.widened, kPageTokens}, kPageTokens, a.scale);
  } else {
    product<false>(scores, queries, keys, kPageTokens, a.scale);
  }
  for (int64_t q = 0; q < queries; ++q) weigh(s, q, first(q), kPageTokens, a.width);
  for (int64_t g = 0; g < l.groups; ++g) {
    widen_halves(page + l.value_scale + 2 * g * kPageTokens, kPageTokens, r.scale);
    widen_halves(page + l.value_minimum + 2 * g * kPageTokens, kPageTokens, r.minimum);
    for (int64_t q = 0; q < queries; ++q)
      r.constants[q] = fold_scales(s.scores + q * kPageTokens, r, kPageTokens, r.factors + q * r.wide);
    const int64_t start = g * kPageTokens, columns = smaller(kPageTokens, a.width - start);
    const Product results{r.factors, r.wide, kPageTokens, r.constants, s.result + start, a.width};
    const Packed<BITS> values{page + l.value_codes + start, a.width};
    if (many) {
      widen_matrix(values, kPageTokens, columns, r.widened, kPageTokens);
      product<true>(results, queries, Widened{r.widened, kPageTokens}, columns, 1.0f);
    } else {
      product<true>(results, queries, values, columns, 1.0f);
    }
  }
}

// The run's own page, in floats.
template <class T>
static void attend_tail(const StoredAttentionArgs& a, Softmax& s, const StoredRun& r, const Run& run, int64_t head, int64_t queries) {
  const int64_t group = a.heads / a.kv_heads, start = a.positions[run.token] / kPageTokens * kPageTokens;
  const int64_t at = (int64_t(a.tail_of[run.token]) * a.kv_heads + head) * kPageTokens * a.width;
  const T* keys = static_cast<const T*>(a.tail_keys) + at;
  const T* values = static_cast<const T*>(a.tail_values) + at;
  AttentionArgs plain{};
  plain.width = a.width, plain.scale = a.scale;
  for (int64_t q = 0; q < queries; q += kScoreTile) {
    const int64_t rows = smaller(kScoreTile, queries - q);
    int64_t from[kScoreTile], to[kScoreTile];
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t position = a.positions[run.token + (q + i) / group], first = first_seen(a.window, position);
      from[i] = first > start ? first - start : 0;
      to[i] = position + 1 - start;
      for (int64_t d = 0; d < a.width; d += kLanes)
        store(s.query + q * a.width + d * rows + i * kLanes, load(r.turned + (q + i) * a.width + d));
    }
    switch (rows) {
      case 4: page_tile<4, T>(plain, s, q, keys, values, nullptr, from, to, a.width); break;
      case 3: page_tile<3, T>(plain, s, q, keys, values, nullptr, from, to, a.width); break;
      case 2: page_tile<2, T>(plain, s, q, keys, values, nullptr, from, to, a.width); break;
      default: page_tile<1, T>(plain, s, q, keys, values, nullptr, from, to, a.width); break;
    }
  }
}

template <int BITS>
static void attend_stored_run(const StoredAttentionArgs& a, const Run& run, int64_t head) {
  const int64_t group = a.heads / a.kv_heads, queries = run.count * group, width = a.width;
  const int64_t wide = width > kPageTokens ? width : kPageTokens;
  Softmax s;
  StoredRun r;
  s.query = scratch(Scratch::kAttention, size_t(queries * (3 * width + wide + kPageTokens + 3) + 2 * wide + wide * kPageTokens));
  s.result = s.query + queries * width;
  r.turned = s.result + queries * width;
  r.factors = r.turned + queries * width;
  s.scores = r.factors + queries * wide;
  r.scale = s.scores + queries * kPageTokens;
  r.minimum = r.scale + wide;
  r.widened = r.minimum + wide;
  s.peak = r.widened + wide * kPageTokens;
  s.total = s.peak + queries;
  r.constants = s.total + queries;
  r.wide = wide;
  for (int64_t q = 0; q < queries; ++q) s.peak[q] = -__builtin_inff(), s.total[q] = 0.0f;
  std::memset(s.result, 0, size_t(queries * width) * sizeof(float));
  const PageLayout l = page_layout(width, BITS);
  const int64_t own = run.last / kPageTokens;
  const int32_t* table = a.page_table + int64_t(a.row_of[run.token]) * a.table_width;
  for (int64_t index = run.first / kPageTokens; index < own; ++index) {
    const uint8_t* page = a.pages + (int64_t(table[index]) * a.kv_heads + head) * l.size;
    if (index + 1 < own) prefetch_all(a.pages + (int64_t(table[index + 1]) * a.kv_heads + head) * l.size, l.size);
    // Later tokens of the run may have left the page behind; those that see it come first.
    int64_t seeing = queries;
    while (seeing > 0 && first_seen(a.window, a.positions[run.token + (seeing - 1) / group]) >= (index + 1) * kPageTokens) --seeing;
    if (seeing == 0) continue;
    turn_run(a, run, head, index, seeing, r.turned);
    attend_stored<BITS>(a, s, r, page, seeing, [&](int64_t q) {
      const int64_t first = first_seen(a.window, a.positions[run.token + q / group]) - index * kPageTokens;
      return first > 0 ? first : int64_t(0);
    });
  }
  turn_run(a, run, head, own, queries, r.turned);
  switch (a.storage) {
    case kFloat32: attend_tail<float>(a, s, r, run, head, queries); break;
    case kBfloat16: attend_tail<Bfloat16>(a, s, r, run, head, queries); break;
    default: attend_tail<Float16>(a, s, r, run, head, queries); break;
  }
  for (int64_t q = 0; q < queries; ++q) {
    float* to = a.y + ((run.token + q / group) * a.heads + head * group + q % group) * width;
    for (int64_t d = 0; d < width; ++d) to[d] = s.result[q * width + d] / s.total[q];
  }
}

static Run stored_run_from(const StoredAttentionArgs& a, int64_t token) {
  const int64_t group = a.heads / a.kv_heads, most = kRunQueries / group > 1 ? kRunQueries / group : 1;
  const int64_t page = a.positions[token] / kPageTokens;
  int64_t end = token + 1;
  while (end < a.tokens && end - token < most && a.row_of[end] == a.row_of[token] &&
         a.positions[end] == a.positions[end - 1] + 1 && a.positions[end] / kPageTokens == page)
    ++end;
  return Run{token, end - token, first_seen(a.window, a.positions[token]), a.positions[end - 1]};
}

static void stored_attention(const StoredAttentionArgs& a) {
  int64_t runs = 0;
  for (int64_t t = 0; t < a.tokens; t += stored_run_from(a, t).count) ++runs;
  Run* list = reinterpret_cast<Run*>(scratch(Scratch::kPackedX, size_t(runs) * sizeof(Run) / sizeof(float) + 1));
  for (int64_t t = 0, i = 0; t < a.tokens; t += list[i].count, ++i) list[i] = stored_run_from(a, t);
  for_chunks(runs * a.kv_heads, [&](int64_t c) {
    const Run& run = list[runs - 1 - c / a.kv_heads];
    if (a.bits == 4) attend_stored_run<4>(a, run, c % a.kv_heads);
    else attend_stored_run<8>(a, run, c % a.kv_heads);
  });
}

// Codes of one row of `count` values `stride` apart, its scale and its minimum; see `quantize` in page_format.py.
template <class T>
static void quantize_row(const T* from, int64_t count, int64_t stride, float largest, uint8_t* codes, Float16& scale, Float16& minimum) {
  float low = __builtin_inff(), high = -__builtin_inff(), poison = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    const float x = widen(from[i * stride]);
    low = x < low ? x : low, high = x > high ? x : high;
    poison += x * 0.0f;  // NaN once anything is no number
  }
  narrow(poison != poison ? poison : low + 0.0f, minimum);  // the sum makes a negative zero positive
  const float base = widen(minimum);
  narrow((high - base) / largest, scale);
  const float step = widen(scale), inverse = step > 0.0f ? 1.0f / step : 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    const float place = __builtin_rintf((widen(from[i * stride]) - base) * inverse);
    codes[i] = uint8_t(place > 0.0f ? (place < largest ? place : largest) : 0.0f);
  }
}

template <class T, int BITS>
static void quantize_head(const T* keys, const T* values, int64_t width, uint8_t* page) {
  constexpr float kLargest = BITS == 4 ? 15.0f : 255.0f;
  const PageLayout l = page_layout(width, BITS);
  uint8_t codes[2][kPageTokens];
  auto half = [&](int64_t offset) { return reinterpret_cast<Float16*>(page + offset); };
  for (int64_t d = 0; d < width; ++d) {
    quantize_row(keys + d, kPageTokens, width, kLargest, codes[d % 2], half(l.key_scale)[d], half(l.key_minimum)[d]);
    if (BITS == 8) std::memcpy(page + d * kPageTokens, codes[d % 2], kPageTokens);
    else if (d % 2)
      for (int64_t t = 0; t < kPageTokens; ++t) page[d / 2 * kPageTokens + t] = uint8_t(codes[0][t] | codes[1][t] << 4);
  }
  for (int64_t g = 0; g < l.groups; ++g) {
    const int64_t start = g * kPageTokens, count = smaller(kPageTokens, width - start);
    for (int64_t t = 0; t < kPageTokens; ++t) {
      quantize_row(values + t * width + start, count, 1, kLargest, codes[t % 2], half(l.value_scale)[g * kPageTokens + t],
                   half(l.value_minimum)[g * kPageTokens + t]);
      uint8_t* out = page + l.value_codes + (BITS == 8 ? t : t / 2) * width + start;
      if (BITS == 8) std::memcpy(out, codes[t % 2], size_t(count));
      else if (t % 2)
        for (int64_t d = 0; d < count; ++d) out[d] = uint8_t(codes[0][d] | codes[1][d] << 4);
    }
  }
}

template <class T>
static void quantize_one(const QuantizePagesArgs& a, int64_t index, int64_t head) {
  const int64_t at = (int64_t(a.tails[index]) * a.kv_heads + head) * kPageTokens * a.width;
  const T* keys = static_cast<const T*>(a.tail_keys) + at;
  const T* values = static_cast<const T*>(a.tail_values) + at;
  uint8_t* page = a.pages + (int64_t(a.page_ids[index]) * a.kv_heads + head) * page_layout(a.width, a.bits).size;
  if (a.bits == 4) quantize_head<T, 4>(keys, values, a.width, page);
  else quantize_head<T, 8>(keys, values, a.width, page);
}

static void quantize_pages(const QuantizePagesArgs& a) {
  for_chunks(a.count * a.kv_heads, [&](int64_t c) {
    switch (a.storage) {
      case kFloat32: return quantize_one<float>(a, c / a.kv_heads, c % a.kv_heads);
      case kBfloat16: return quantize_one<Bfloat16>(a, c / a.kv_heads, c % a.kv_heads);
      default: return quantize_one<Float16>(a, c / a.kv_heads, c % a.kv_heads);
    }
  });
}

}  // namespace windlass::WL_ISA
