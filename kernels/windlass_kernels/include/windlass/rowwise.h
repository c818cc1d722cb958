// The small ops between matrix products, each row on its own: a fixed order per row, so batch invariant by construction.
//
// norm       reads and writes each row once (twice with a residual): M * F * 8 or 16 bytes, in cache during decoding.
// silu_mul   M * F * 12 bytes.
// rope       T * (H + 2G) * D * 4 bytes in, queries out, keys and values into their pages in the storage type.
// Few rows run on the calling thread: a fork costs more than 16 KB of work.
#pragma once
#include "windlass/linear.h"
#include "windlass/pool.h"
#include "windlass/table.h"
#include "windlass/vec.h"

namespace windlass::WL_ISA {

constexpr int64_t kSerialFloats = 16384;

// Split `rows` of `floats` each over the threads where that pays.
template <class Body>
WL_INLINE void for_rows(int64_t rows, int64_t floats, const Body& body) {
  const int64_t per_chunk = kSerialFloats / (floats + 1) + 1;
  for_chunks((rows + per_chunk - 1) / per_chunk, [&](int64_t c) {
    for (int64_t row = c * per_chunk; row < smaller((c + 1) * per_chunk, rows); ++row) body(row);
  });
}

WL_INLINE float inverse_root_mean_square(const float* x, int64_t count, float eps) {
  Vec squares = zero();
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) squares = fma(load(x + i), load(x + i), squares);
  if (i < count) {
    const Vec rest = load_first(x + i, int(count - i));
    squares = fma(rest, rest, squares);
  }
  return 1.0f / __builtin_sqrtf(sum(squares) / float(count) + eps);
}

WL_INLINE void normalise(const float* x, const float* weight, int64_t count, float eps, float* y) {
  const float scale = inverse_root_mean_square(x, count, eps);
  for (int64_t i = 0; i < count; ++i) y[i] = x[i] * scale * weight[i];
}

static void norm(const NormArgs& a) {
  for_rows(a.m, a.f, [&](int64_t m) {
    float* x = a.x + m * a.f;
    if (a.delta != nullptr)
      for (int64_t i = 0; i < a.f; ++i) x[i] += a.delta[m * a.f + i];
    normalise(x, a.weight, a.f, a.eps, a.y + m * a.f);
  });
}

WL_INLINE Vec silu_times(Vec gate, Vec up) {
  return mul(div(gate, add(all(1.0f), exponential(sub(zero(), gate)))), up);
}

static void silu_mul(const SiluArgs& a) {
  constexpr int64_t kSpan = 2048;
  const int64_t spans = (a.f + kSpan - 1) / kSpan;
  for_rows(a.m * spans, 4 * smaller(kSpan, a.f), [&](int64_t at) {
    const int64_t m = at / spans, from = at % spans * kSpan, to = smaller(from + kSpan, a.f);
    const float* gate = a.gate_up + m * 2 * a.f;
    const float* up = gate + a.f;
    float* y = a.y + m * a.f;
    int64_t i = from;
    for (; i + kLanes <= to; i += kLanes) store(y + i, silu_times(load(gate + i), load(up + i)));
    if (i < to) store_first(y + i, silu_times(load_first(gate + i, int(to - i)), load_first(up + i, int(to - i))), int(to - i));
  });
}

// silu(gate) * up of the active blocks, zeros in the others, and on demand what each block would have contributed.
static void silu_mul_active(const GatedArgs& a) {
  static_assert(kNeuronBlock % kLanes == 0, "a block is whole vectors");
  const int64_t blocks = a.f / kNeuronBlock;
  for_rows(a.m * blocks, 4 * kNeuronBlock, [&](int64_t at) {
    const int64_t from = at / blocks * 2 * a.f + at % blocks * kNeuronBlock;
    const float* gate = a.gate_up + from;
    const float* up = gate + a.f;
    const float* norms = a.norms + at % blocks * kNeuronBlock;
    float* y = a.y + at * kNeuronBlock;
    Vec squares = zero();
    for (int64_t i = 0; i < kNeuronBlock; i += kLanes) {
      const bool wanted = a.active[at] != 0;
      const Vec gated = wanted || a.mass != nullptr ? silu_times(load(gate + i), load(up + i)) : zero();
      store(y + i, wanted ? gated : zero());
      if (a.mass == nullptr) continue;
      const Vec part = mul(gated, load(norms + i));
      squares = fma(part, part, squares);
    }
    if (a.mass != nullptr) a.mass[at] = sum(squares);
  });
}

WL_INLINE float rectified_dot(const float* x, const float* w, int64_t count) {
  Vec total = zero();
  for (int64_t i = 0; i < count; i += kLanes) {
    const int now = int(smaller(kLanes, count - i));
    const Vec part = now == kLanes ? load(x + i) : load_first(x + i, now);
    total = fma(max(part, zero()), now == kLanes ? load(w + i) : load_first(w + i, now), total);
  }
  return sum(total);
}

// Which blocks each row wants: those whose predicted share of the output, the softmax of a thin product, lies above the cut.
static void predict_blocks(const PredictArgs& a) {
  for (int64_t m = 0; m < a.m; ++m) {
    float* shares = scratch(Scratch::kAttention, size_t(a.blocks));
    float best = -__builtin_inff();
    for (int64_t b = 0; b < a.blocks; ++b) {
      shares[b] = rectified_dot(a.features + m * a.rank, a.weight + b * a.rank, a.rank) + a.bias[b];
      best = shares[b] > best ? shares[b] : best;
    }
    float total = 0.0f;
    for (int64_t b = 0; b < a.blocks; b += kLanes) {
      const int now = int(smaller(kLanes, a.blocks - b));
      const Vec part = exponential(sub(now == kLanes ? load(shares + b) : load_first(shares + b, now), all(best)));
      store_first(shares + b, part, now);
      for (int i = 0; i < now; ++i) total += shares[b + i];
    }
    for (int64_t b = 0; b < a.blocks; ++b) a.active[m * a.blocks + b] = shares[b] > a.cut * total;
  }
}

// Which blocks each row wants, judged by its gates: the largest |silu(gate)| * norm of a block, above the cut.
static void score_gates(const GateScoreArgs& a) {
  const int64_t blocks = a.f / kNeuronBlock;
  for_rows(a.m * blocks, 4 * kNeuronBlock, [&](int64_t at) {
    const float* gate = a.gate_up + at / blocks * 2 * a.f + at % blocks * kNeuronBlock;
    const float* norms = a.norms + at % blocks * kNeuronBlock;
    Vec best = zero();
    for (int64_t i = 0; i < kNeuronBlock; i += kLanes) {
      const Vec scaled = mul(silu_times(load(gate + i), all(1.0f)), load(norms + i));
      best = max(best, max(scaled, sub(zero(), scaled)));
    }
    a.active[at] = largest(best) > a.cut;
  });
}

// Turn one head in place.
WL_INLINE void rotate(float* x, const float* cos, const float* sin, int64_t half, bool interleaved) {
  if (interleaved) {
    for (int64_t i = 0; i < half; ++i) {
      const float a = x[2 * i], b = x[2 * i + 1];
      x[2 * i] = a * cos[i] - b * sin[i];
      x[2 * i + 1] = a * sin[i] + b * cos[i];
    }
    return;
  }
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i], b = x[i + half];
    x[i] = a * cos[i] - b * sin[i];
    x[i + half] = a * sin[i] + b * cos[i];
  }
}

template <class T>
WL_INLINE void store_head(const float* x, int64_t width, void* pages, int64_t kv_heads, int64_t head, int64_t slot) {
  const int64_t page = slot / kPageTokens, offset = slot % kPageTokens;
  T* out = static_cast<T*>(pages) + ((page * kv_heads + head) * kPageTokens + offset) * width;
  for (int64_t i = 0; i < width; ++i) narrow(x[i], out[i]);
}

template <class T>
static void rope_token(const RopeArgs& a, int64_t t) {
  const float* qkv = a.qkv + t * (a.heads + 2 * a.kv_heads) * a.width;
  const float* cos = a.cos + int64_t(a.positions[t]) * a.half;
  const float* sin = a.sin + int64_t(a.positions[t]) * a.half;
  const float* key_cos = a.cos + int64_t(a.key_angles[t]) * a.half;
  const float* key_sin = a.sin + int64_t(a.key_angles[t]) * a.half;
  float* turned = scratch(Scratch::kAttention, size_t(a.width));
  for (int64_t h = 0; h < a.heads + a.kv_heads; ++h) {
    const bool is_query = h < a.heads;
    const float* weight = is_query ? a.q_norm : a.k_norm;
    float* out = is_query ? a.q + (t * a.heads + h) * a.width : turned;
    if (!is_query && a.slots[t] < 0) return;
    if (weight != nullptr) normalise(qkv + h * a.width, weight, a.width, a.eps, out);
    else std::memcpy(out, qkv + h * a.width, size_t(a.width) * sizeof(float));
    rotate(out, is_query ? cos : key_cos, is_query ? sin : key_sin, a.half, a.interleaved != 0);
    if (!is_query) store_head<T>(out, a.width, a.key_pages, a.kv_heads, h - a.heads, a.slots[t]);
  }
  const float* values = qkv + (a.heads + a.kv_heads) * a.width;
  for (int64_t g = 0; g < a.kv_heads; ++g)
    store_head<T>(values + g * a.width, a.width, a.value_pages, a.kv_heads, g, a.slots[t]);
}

static void rope_and_store(const RopeArgs& a) {
  for_rows(a.tokens, (a.heads + 2 * a.kv_heads) * a.width, [&](int64_t t) {
    switch (a.storage) {
      case kFloat32: return rope_token<float>(a, t);
      case kBfloat16: return rope_token<Bfloat16>(a, t);
      default: return rope_token<Float16>(a, t);
    }
  });
}

// Sum `count` floats as fast as memory delivers them: the measured floor that benchmarks divide by. Order is not fixed.
static float read_all(const float* p, int64_t count) {
  constexpr int64_t kSpan = 64 * 1024, kAhead = 1024;  // eight streams keep more requests in flight than one
  const int64_t spans = count / kSpan;
  float* sums = scratch(Scratch::kPackedX, size_t(spans + 1));
  for_chunks(spans, [&](int64_t c) {
    Sums<8, 1> s;
    clear(s);
    const float* from = p + c * kSpan;
    for (int64_t i = 0; i < kSpan / 8; i += kLanes)
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) {
        const float* at = from + j * (kSpan / 8) + i;
        prefetch(at + kAhead);
        s.v[j][0] = add(s.v[j][0], load(at));
      }
    float folded[8];
    for (int j = 0; j < 8; ++j) folded[j] = sum(s.v[j][0]);
    sums[c] = ((folded[0] + folded[1]) + (folded[2] + folded[3])) + ((folded[4] + folded[5]) + (folded[6] + folded[7]));
  });
  float total = 0.0f;
  for (int64_t c = 0; c < spans; ++c) total += sums[c];
  return total;
}

}  // namespace windlass::WL_ISA
