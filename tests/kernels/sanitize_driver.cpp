// Runs every op on buffers of exactly the promised size, so that a sanitizer sees any step beyond them, and checks the results
// against plain loops. Linked against a library built with the same sanitizer; exits with 1 on a wrong result.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <thread>
#include <vector>

#include "windlass/feed_forward.h"

extern "C" {
int64_t windlass_feed_forward(const windlass::FeedForward*, const float*, const float*, const uint8_t*, float*, float*, uint8_t*,
                              float*, int64_t);
int windlass_choose_isa(const char*);
void windlass_set_threads(int);
void windlass_linear(const float*, const void*, const float*, float*, int64_t, int64_t, int64_t, int32_t);
void windlass_packed_linear(const float*, const uint8_t*, const void*, const float*, float*, int64_t, int64_t, int64_t, int64_t, float,
                            int32_t);
void windlass_packed_rows(const int32_t*, const uint8_t*, const void*, float*, int64_t, int64_t, int64_t, int32_t);
void windlass_norm(float*, const float*, const float*, float*, int64_t, int64_t, float);
void windlass_silu_mul(const float*, float*, int64_t, int64_t);
void windlass_rope_and_store(const float*, const float*, const float*, const int32_t*, const int32_t*, const int32_t*, void*, void*, const float*,
                             const float*, float*, int64_t, int64_t, int64_t, int64_t, int64_t, float, int32_t, int32_t);
void windlass_paged_attention(const float*, const void*, const void*, const int32_t*, const int32_t*, const int32_t*, float*, int64_t,
                              int64_t, int64_t, int64_t, int64_t, int64_t, float, int32_t);
}

namespace {

using Exact = std::unique_ptr<float[]>;
uint32_t state = 1;
int failures = 0;

Exact numbers(int64_t count) {
  Exact values(new float[size_t(count)]);
  for (int64_t i = 0; i < count; ++i) state = state * 1664525u + 1013904223u, values[size_t(i)] = float(state >> 8) / 8388608.0f - 1.0f;
  return values;
}

void expect(double found, double wanted, double allowed, const char* what) {
  if (!(std::fabs(found - wanted) <= allowed)) ++failures, std::printf("%s: expected %g, found %g\n", what, wanted, found);
}

void check_linear(int64_t m, int64_t n, int64_t k) {
  const Exact x = numbers(m * k), w = numbers(n * k), bias = numbers(n), y = numbers(m * n);
  windlass_linear(x.get(), w.get(), bias.get(), y.get(), m, n, k, 0);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double sum = bias[size_t(j)];
      for (int64_t at = 0; at < k; ++at) sum += double(x[size_t(i * k + at)]) * w[size_t(j * k + at)];
      expect(y[size_t(i * n + j)], sum, 1e-4, "linear");
    }
  // Half the bytes: the same buffer seen as 16-bit weights must never be passed beyond its end either.
  for (int32_t storage : {1, 2}) {
    const std::vector<uint16_t> halves(size_t(n * k), storage == 1 ? 0x3f80 : 0x3c00);
    const std::unique_ptr<uint16_t[]> exact(new uint16_t[size_t(n * k)]);
    std::copy(halves.begin(), halves.end(), exact.get());
    windlass_linear(x.get(), exact.get(), nullptr, y.get(), m, n, k, storage);
    double sum = 0;
    for (int64_t at = 0; at < k; ++at) sum += x[size_t((m - 1) * k + at)];
    expect(y[size_t(m * n - 1)], sum, 1e-4, "linear with ones");
  }
}

// Every code is 1 and every scale 1/2, so that an output is half the sum of its inputs, within the inputs' rounding to 8 bits.
void check_packed(int64_t m, int64_t n, int64_t k, int64_t group, int32_t bits) {
  const int64_t panels = (n + 31) / 32, padded = (k + group - 1) / group * group, groups = padded / group;
  const Exact x = numbers(m * k), bias = numbers(n), y = numbers(m * n), rows = numbers(k);
  const std::unique_ptr<uint8_t[]> codes(new uint8_t[size_t(panels * 32 * padded * bits / 8)]);
  std::fill_n(codes.get(), panels * 32 * padded * bits / 8, uint8_t(bits == 8 ? 129 : 0x99));
  const std::unique_ptr<float[]> wide(new float[size_t(panels * 32)]);
  const std::unique_ptr<uint16_t[]> halves(new uint16_t[size_t(panels * groups * 32)]);
  std::fill_n(wide.get(), panels * 32, 0.5f);
  std::fill_n(halves.get(), panels * groups * 32, uint16_t(0x3800));
  const void* scales = bits == 8 ? static_cast<const void*>(wide.get()) : halves.get();
  windlass_packed_linear(x.get(), codes.get(), scales, bias.get(), y.get(), m, n, k, group, 0.0f, bits);
  for (int64_t i = 0; i < m; ++i) {
    double sum = 0;
    for (int64_t at = 0; at < k; ++at) sum += 0.5 * x[size_t(i * k + at)];
    for (int64_t j = 0; j < n; ++j) expect(y[size_t(i * n + j)], sum + bias[size_t(j)], 0.001 * double(k), "packed linear");
  }
  const int32_t last = int32_t(n) - 1;
  windlass_packed_rows(&last, codes.get(), scales, rows.get(), 1, k, group, bits);
  expect(rows[size_t(k - 1)], 0.5, 0.0, "packed rows");
}

void check_rows(int64_t m, int64_t f) {
  const Exact x = numbers(m * f), delta = numbers(m * f), weight = numbers(f), y = numbers(m * f), gate_up = numbers(m * 2 * f);
  windlass_norm(x.get(), delta.get(), weight.get(), y.get(), m, f, 1e-5f);
  double squares = 0;
  for (int64_t i = 0; i < f; ++i) squares += double(x[size_t(i)]) * x[size_t(i)];
  expect(y[size_t(f - 1)], x[size_t(f - 1)] * weight[size_t(f - 1)] / std::sqrt(squares / double(f) + 1e-5), 1e-5, "norm");
  windlass_silu_mul(gate_up.get(), y.get(), m, f);
  const double gate = gate_up[size_t((m - 1) * 2 * f + f - 1)], up = gate_up[size_t(m * 2 * f - 1)];
  expect(y[size_t(m * f - 1)], gate / (1 + std::exp(-gate)) * up, 1e-5, "silu_mul");
}

// Floats, both ways to choose blocks, every way to compute them: the result is that of the active blocks.
void check_feed_forward(int64_t m, int64_t blocks, int32_t selection, float dense_above, bool with_mass) {
  constexpr int64_t kHidden = 48, kRank = 7;
  const int64_t f = blocks * windlass::kNeuronBlock;
  const Exact x = numbers(m * kHidden), gate_up = numbers(2 * f * kHidden), down = numbers(kHidden * f), narrow = numbers(kRank * kHidden);
  const Exact wide = numbers(blocks * kRank), bias = numbers(blocks), norms = numbers(f), y = numbers(m * kHidden);
  const Exact room = numbers(m * 3 * f), mass = numbers(m * blocks);
  const std::unique_ptr<uint8_t[]> active(new uint8_t[size_t(m * blocks)]), all(new uint8_t[size_t(m)]());
  if (m > 2) all[size_t(m - 1)] = 1;
  const windlass::FeedForward layer{{gate_up.get(), nullptr, nullptr, 2 * f, kHidden, 0, 0.0f, 0},
                                    {down.get(), nullptr, nullptr, kHidden, f, 0, 0.0f, 0},
                                    {narrow.get(), nullptr, nullptr, kRank, kHidden, 0, 0.0f, 0},
                                    wide.get(), bias.get(), norms.get(), 8, selection == windlass::kByGate ? 0.8f : 1.0f / float(blocks),
                                    dense_above, selection};
  windlass_feed_forward(&layer, x.get(), x.get(), all.get(), room.get(), y.get(), active.get(), with_mass ? mass.get() : nullptr, m);
  std::vector<double> sums(size_t(kHidden), 0.0);
  for (int64_t j = 0; j < f; ++j) {
    if (selection != windlass::kDense && !active[size_t((m - 1) * blocks + j / windlass::kNeuronBlock)]) continue;
    double gate = 0, up = 0;
    for (int64_t k = 0; k < kHidden; ++k) {
      gate += double(x[size_t((m - 1) * kHidden + k)]) * gate_up[size_t(j * kHidden + k)];
      up += double(x[size_t((m - 1) * kHidden + k)]) * gate_up[size_t((f + j) * kHidden + k)];
    }
    for (int64_t n = 0; n < kHidden; ++n) sums[size_t(n)] += gate / (1 + std::exp(-gate)) * up * down[size_t(n * f + j)];
  }
  for (int64_t n = 0; n < kHidden; ++n) expect(y[size_t((m - 1) * kHidden + n)], sums[size_t(n)], 1e-2, "feed forward");
}

// One sequence of `length` tokens: rope with angle 0 stores keys and values as they are; attention over them, all tokens at once.
void check_attention(int64_t length, int64_t heads, int64_t kv_heads, int64_t width, int64_t window) {
  const int64_t pages = (length + 63) / 64, group = heads / kv_heads;
  const Exact qkv = numbers(length * (heads + 2 * kv_heads) * width), q = numbers(length * heads * width);
  const Exact keys = numbers(pages * kv_heads * 64 * width), values = numbers(pages * kv_heads * 64 * width);
  const Exact y = numbers(length * heads * width);
  const int64_t half = width / 2;
  const std::vector<float> cos(size_t(length * half), 1.0f), sin(size_t(length * half), 0.0f);
  std::vector<int32_t> positions, slots, table, rows(size_t(length), 0);
  for (int32_t t = 0; t < length; ++t) positions.push_back(t), slots.push_back((int32_t(pages) - 1 - t / 64) * 64 + t % 64);
  for (int32_t p = 0; p < pages; ++p) table.push_back(int32_t(pages) - 1 - p);
  windlass_rope_and_store(qkv.get(), cos.data(), sin.data(), positions.data(), positions.data(), slots.data(), keys.get(), values.get(), nullptr, nullptr,
                          q.get(), length, heads, kv_heads, width, half, 1e-6f, 0, 0);
  windlass_paged_attention(q.get(), keys.get(), values.get(), table.data(), rows.data(), positions.data(), y.get(), length, heads,
                           kv_heads, width, pages, window, 0.5f, 0);
  const int64_t stride = (heads + 2 * kv_heads) * width, t = length - 1, h = heads - 1, g = h / group;
  double total = 0, first = 0;
  for (int64_t s = window > 0 && length > window ? length - window : 0; s < length; ++s) {
    double score = 0;
    for (int64_t d = 0; d < width; ++d) score += double(qkv[size_t(t * stride + h * width + d)]) * qkv[size_t(s * stride + (heads + g) * width + d)];
    const double weight = std::exp(0.5 * score);
    total += weight, first += weight * qkv[size_t(s * stride + (heads + kv_heads + g) * width)];
  }
  expect(y[size_t((t * heads + h) * width)], first / total, 1e-5, "attention");
}

void check_everything() {
  for (int64_t m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 67})
    for (int64_t n : {1, 5, 31, 101})
      for (int64_t k : {1, 17, 48}) check_linear(m, n, k);
  check_linear(2, 9, 1039), check_linear(10, 9, 1039);
  for (int64_t m : {1, 2, 3, 4, 6, 17})
    for (int64_t n : {1, 33, 70}) check_packed(m, n, 67, 64, 8), check_packed(m, n, 96, 32, 4), check_packed(m, n, 256, 128, 4);
  for (int64_t f : {1, 3, 16, 33, 2051}) check_rows(1, f), check_rows(9, f);
  for (int64_t m : {1, 2, 5, 9})
    for (int64_t blocks : {1, 3, 17})
      for (int32_t selection : {windlass::kDense, windlass::kPredicted, windlass::kByGate})
        for (float above : {0.0f, 1.0f})
          for (bool with_mass : {false, true}) check_feed_forward(m, blocks, selection, above, with_mass);
  check_attention(1, 1, 1, 8, 0), check_attention(65, 6, 2, 20, 0), check_attention(130, 4, 4, 16, 7), check_attention(70, 3, 1, 64, 64);
}

}  // namespace

int main() {
  windlass_set_threads(3);
  for (const char* isa : {"avx512", "avx2", "portable"})
    if (windlass_choose_isa(isa)) check_everything();
  std::thread other([] { for (int i = 0; i < 50; ++i) windlass_set_threads(1 + i % 3); });
  check_linear(1, 4000, 64);
  other.join();
  return failures == 0 ? 0 : 1;
}
