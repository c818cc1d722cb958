// Causal attention over paged keys and values, bitwise the same for a token alone, in a prefill chunk, or in any batch.
//
// Idea: online softmax page by page, oldest first, so a query's order of additions depends on its own positions only. A chunk
// of work is one key/value head times a run of consecutive tokens of one row; each page is read once for all query heads of
// the group and all tokens of the run. Positions a query may not see get weight 0 and are never multiplied with values.
// Traffic: 2 * positions * D * bytes(page) per token run and key/value head; a run holds about 32 queries.
// Measured: one token at 1,024 positions, 12 heads on 4, width 64, float32: 0.13 ms on one Zen 4 core (14 GB/s; 10 without asking
// ahead for values and the next keys); 256 tokens ending at 1,024: 10.4 ms. 2026-11-24, a shared machine: best of many runs.
// Decoding with fewer (token, key/value head) pairs than threads leaves threads idle: one order matters more than that case.
#pragma once
#include "windlass/linear.h"
#include "windlass/pool.h"
#include "windlass/table.h"
#include "windlass/vec.h"

namespace windlass::WL_ISA {

constexpr int64_t kRunQueries = 32;
constexpr int kScoreTile = 4;  // queries and positions of one tile of scores
constexpr int kValueVectors = 4;

// What one chunk works on. Query q = token offset * group + head in the group.
struct Run {
  int64_t token, count;  // tokens token .. token + count - 1, all of one row
  int64_t first, last;   // positions any of its tokens sees
};

struct Softmax {
  float* query;   // [tiles of 4][D / lanes][<= 4][lanes], scaled by nothing
  float* scores;  // [Q][64]
  float* peak;    // [Q]
  float* total;   // [Q]
  float* result;  // [Q][padded D]
};

WL_INLINE int64_t first_seen(int64_t window, int64_t position) {
  return window > 0 && position + 1 > window ? position + 1 - window : 0;
}

// Ask for `count` elements that are wanted soon.
template <class T>
WL_INLINE void prefetch_all(const T* from, int64_t count) {
  for (int64_t at = 0; at < count; at += 64 / int64_t(sizeof(T))) prefetch(from + at);
}

// Scores of up to 4 queries against 64 keys, all dot products by the order of `sum`. `next` [64, D] is wanted afterwards.
template <int MR, class T>
static void score_tile(const float* query, const T* keys, const T* next, int64_t width, float scale, float* scores) {
  constexpr int NR = kRegisters == 32 ? 4 : 2;
  for (int64_t p = 0; p < kPageTokens; p += NR) {
    if (next != nullptr) prefetch_all(next + p * width, NR * width);
    Sums<MR, NR> s;
    clear(s);
    Vec row[NR];
    int64_t d = 0;
    for (; d + kLanes <= width; d += kLanes) {
#pragma GCC unroll 4
      for (int j = 0; j < NR; ++j) row[j] = load(keys + (p + j) * width + d);
      multiply_add(s, query + d * MR, row);
    }
    if (d < width) {
      for (int j = 0; j < NR; ++j) row[j] = load_first(keys + (p + j) * width + d, int(width - d));
      multiply_add(s, query + d * MR, row);
    }
    deliver(s, scores + p, kPageTokens, true);
  }
  for (int64_t i = 0; i < MR * kPageTokens; i += kLanes) store(scores + i, mul(load(scores + i), all(scale)));
}

// Turn the scores of one query into weights and update its running peak and total; from .. to are the positions it sees.
WL_INLINE void weigh(Softmax& s, int64_t q, int64_t from, int64_t to, int64_t padded_width) {
  float* scores = s.scores + q * kPageTokens;
  const float minus_infinity = -__builtin_inff();
  for (int64_t p = 0; p < from; ++p) scores[p] = minus_infinity;
  for (int64_t p = to; p < kPageTokens; ++p) scores[p] = minus_infinity;
  Vec peak = load(scores);
  for (int64_t p = kLanes; p < kPageTokens; p += kLanes) peak = max(load(scores + p), peak);
  const float before = s.peak[q], highest = largest(peak), now = highest > before ? highest : before;
  Vec total = zero();
  for (int64_t p = 0; p < kPageTokens; p += kLanes) {
    const Vec weight = exponential(sub(load(scores + p), all(now)));
    store(scores + p, weight);
    total = add(total, weight);
  }
  float shrink[kLanes];
  store(shrink, exponential(all(before - now)));
  if (shrink[0] != 1.0f) {
    float* result = s.result + q * padded_width;
    for (int64_t d = 0; d < padded_width; d += kLanes) store(result + d, mul(load(result + d), all(shrink[0])));
  }
  s.total[q] = s.total[q] * shrink[0] + sum(total);
  s.peak[q] = now;
}

// result[MR][DV vectors] += weights[MR][from .. to] * values. `last` lanes of the last vector exist.
template <int MR, int DV, bool kWhole, class T>
WL_INLINE void value_tile(const float* weights, const T* values, int64_t width, int64_t from, int64_t to, int last, float* result,
                          int64_t padded_width) {
  Sums<MR, DV> s;
  for (int i = 0; i < MR; ++i)
    for (int j = 0; j < DV; ++j) s.v[i][j] = load(result + i * padded_width + j * kLanes);
  for (int64_t p = from; p < to; ++p) {
    Vec row[DV];
#pragma GCC unroll 4
    for (int j = 0; j < DV; ++j) row[j] = kWhole ? load(values + p * width + j * kLanes) : load_first(values + p * width, last);
#pragma GCC unroll 4
    for (int i = 0; i < MR; ++i) {
      const Vec weight = all(weights[i * kPageTokens + p]);
#pragma GCC unroll 4
      for (int j = 0; j < DV; ++j) s.v[i][j] = fma(weight, row[j], s.v[i][j]);
    }
  }
  for (int i = 0; i < MR; ++i)
    for (int j = 0; j < DV; ++j) store(result + i * padded_width + j * kLanes, s.v[i][j]);
}

template <int MR, class T>
static void value_rows(const float* weights, const T* values, int64_t width, int64_t from, int64_t to, float* result,
                       int64_t padded_width) {
  constexpr int DV = kRegisters == 32 || MR <= 2 ? kValueVectors : 2;
  int64_t d = 0;
  for (; d + DV * kLanes <= width; d += DV * kLanes)
    value_tile<MR, DV, true>(weights, values + d, width, from, to, kLanes, result + d, padded_width);
  for (; d + kLanes <= width; d += kLanes)
    value_tile<MR, 1, true>(weights, values + d, width, from, to, kLanes, result + d, padded_width);
  if (d < width) value_tile<MR, 1, false>(weights, values + d, width, from, to, int(width - d), result + d, padded_width);
}

// One page for one tile of up to 4 queries, of which query i sees positions from[i] .. to[i] of the page.
template <int MR, class T>
static void page_tile(const AttentionArgs& a, Softmax& s, int64_t q, const T* keys, const T* values, const T* next,
                      const int64_t* from, const int64_t* to, int64_t padded_width) {
  score_tile<MR>(s.query + q * padded_width, keys, next, a.width, a.scale, s.scores + q * kPageTokens);
  bool all_seen = true;
  for (int i = 0; i < MR; ++i) {
    if (from[i] < to[i]) weigh(s, q + i, from[i], to[i], padded_width);
    all_seen = all_seen && from[i] == 0 && to[i] == kPageTokens;
  }
  float* weights = s.scores + q * kPageTokens;
  float* result = s.result + q * padded_width;
  if (all_seen) return value_rows<MR>(weights, values, a.width, 0, kPageTokens, result, padded_width);
  for (int i = 0; i < MR; ++i)
    if (from[i] < to[i])
      value_rows<1>(weights + i * kPageTokens, values, a.width, from[i], to[i], result + i * padded_width, padded_width);
}

template <class T>
static void attend_page(const AttentionArgs& a, Softmax& s, const Run& run, int64_t head, int64_t page_index, int64_t padded_width) {
  const int64_t last_page = run.last / kPageTokens;
  const int64_t group = a.heads / a.kv_heads, queries = run.count * group, start = page_index * kPageTokens;
  const int64_t page = a.page_table[int64_t(a.row_of[run.token]) * a.table_width + page_index];
  const T* keys = static_cast<const T*>(a.key_pages) + (page * a.kv_heads + head) * kPageTokens * a.width;
  const T* values = static_cast<const T*>(a.value_pages) + (page * a.kv_heads + head) * kPageTokens * a.width;
  if (page_index < last_page) {
    const int64_t following = a.page_table[int64_t(a.row_of[run.token]) * a.table_width + page_index + 1];
    const int64_t at = (following * a.kv_heads + head) * kPageTokens * a.width;
    prefetch_all(static_cast<const T*>(a.key_pages) + at, kPageTokens * a.width);
  }
  for (int64_t q = 0; q < queries; q += kScoreTile) {
    const int64_t rows = smaller(kScoreTile, queries - q);
    int64_t from[kScoreTile], to[kScoreTile], widest = 0;
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t position = a.positions[run.token + (q + i) / group], first = first_seen(a.window, position);
      from[i] = first > start ? first - start : 0;
      to[i] = smaller(position + 1 - start, kPageTokens);
      if (to[i] > from[i] && to[i] - from[i] > widest) widest = to[i] - from[i];
    }
    if (widest == 0) continue;
    // A decoding token meets each page cold, a long run only with its first tile.
    const T* next = q == 0 ? values : nullptr;
    switch (rows) {
      case 4: page_tile<4>(a, s, q, keys, values, next, from, to, padded_width); break;
      case 3: page_tile<3>(a, s, q, keys, values, next, from, to, padded_width); break;
      case 2: page_tile<2>(a, s, q, keys, values, next, from, to, padded_width); break;
      default: page_tile<1>(a, s, q, keys, values, next, from, to, padded_width); break;
    }
  }
}

template <class T>
static void attend_run(const AttentionArgs& a, const Run& run, int64_t head) {
  const int64_t group = a.heads / a.kv_heads, queries = run.count * group, padded_width = rounded_up(a.width, kLanes);
  Softmax s;
  s.query = scratch(Scratch::kAttention, size_t(queries * (2 * padded_width + kPageTokens + 2)));
  s.result = s.query + queries * padded_width;
  s.scores = s.result + queries * padded_width;
  s.peak = s.scores + queries * kPageTokens;
  s.total = s.peak + queries;
  for (int64_t q = 0; q < queries; ++q) s.peak[q] = -__builtin_inff(), s.total[q] = 0.0f;
  std::memset(s.result, 0, size_t(queries * padded_width) * sizeof(float));
  for (int64_t q = 0; q < queries; q += kScoreTile) {
    const int64_t rows = smaller(kScoreTile, queries - q);
    for (int64_t i = 0; i < rows; ++i) {
      const float* from = a.query + ((run.token + (q + i) / group) * a.heads + head * group + (q + i) % group) * a.width;
      for (int64_t d = 0; d < padded_width; d += kLanes)
        store(s.query + q * padded_width + d * rows + i * kLanes,
              d + kLanes <= a.width ? load(from + d) : load_first(from + d, int(a.width - d)));
    }
  }
  for (int64_t page = run.first / kPageTokens; page <= run.last / kPageTokens; ++page)
    attend_page<T>(a, s, run, head, page, padded_width);
  for (int64_t q = 0; q < queries; ++q) {
    float* to = a.y + ((run.token + q / group) * a.heads + head * group + q % group) * a.width;
    for (int64_t d = 0; d < a.width; ++d) to[d] = s.result[q * padded_width + d] / s.total[q];
  }
}

// How far the run that starts at `token` goes: the same row, ascending positions, a bounded number of queries.
static Run run_from(const AttentionArgs& a, int64_t token) {
  const int64_t group = a.heads / a.kv_heads, most = kRunQueries / group > 1 ? kRunQueries / group : 1;
  int64_t end = token + 1;
  while (end < a.tokens && end - token < most && a.row_of[end] == a.row_of[token] && a.positions[end] == a.positions[end - 1] + 1)
    ++end;
  return Run{token, end - token, first_seen(a.window, a.positions[token]), a.positions[end - 1]};
}

static void paged_attention(const AttentionArgs& a) {
  int64_t runs = 0;
  for (int64_t t = 0; t < a.tokens; t += run_from(a, t).count) ++runs;
  Run* list = reinterpret_cast<Run*>(scratch(Scratch::kPackedX, size_t(runs) * sizeof(Run) / sizeof(float) + 1));
  for (int64_t t = 0, i = 0; t < a.tokens; t += list[i].count, ++i) list[i] = run_from(a, t);
  for_chunks(runs * a.kv_heads, [&](int64_t c) {
    // Last runs first: they see the longest contexts, and the small ones fill the gaps at the end.
    const Run& run = list[runs - 1 - c / a.kv_heads];
    const int64_t head = c % a.kv_heads;
    switch (a.storage) {
      case kFloat32: return attend_run<float>(a, run, head);
      case kBfloat16: return attend_run<Bfloat16>(a, run, head);
      default: return attend_run<Float16>(a, run, head);
    }
  });
}

}  // namespace windlass::WL_ISA
