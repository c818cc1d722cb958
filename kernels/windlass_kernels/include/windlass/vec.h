// One vector of floats on the instruction set this file is compiled for: AVX-512, AVX2+FMA, NEON, or four plain lanes.
// Everything lives in a namespace of its own per instruction set, so that the linker never merges code across sets.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define WL_INLINE static inline __attribute__((always_inline))

namespace windlass::WL_ISA {

struct Bfloat16 { uint16_t bits; };
struct Float16 { uint16_t bits; };

WL_INLINE float float_of_bits(uint32_t bits) { float f; std::memcpy(&f, &bits, 4); return f; }
WL_INLINE uint32_t bits_of_float(float f) { uint32_t bits; std::memcpy(&bits, &f, 4); return bits; }

// Scalar conversions; rounding is to nearest even, NaN stays NaN.
WL_INLINE float widen(float f) { return f; }
WL_INLINE float widen(Bfloat16 h) { return float_of_bits(uint32_t(h.bits) << 16); }
WL_INLINE float widen(Float16 h) {
  const uint32_t sign = uint32_t(h.bits & 0x8000u) << 16, rest = h.bits & 0x7fffu;
  if (rest >= 0x7c00u) return float_of_bits(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  // Shifting the exponent field over and multiplying by 2^112 is exact, for denormals too.
  return float_of_bits(sign | bits_of_float(float_of_bits(rest << 13) * 0x1p112f));
}
WL_INLINE void narrow(float f, float& out) { out = f; }
WL_INLINE void narrow(float f, Bfloat16& out) {
  const uint32_t bits = bits_of_float(f);
  out.bits = uint16_t(f != f ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
WL_INLINE void narrow(float f, Float16& out) {
  const uint32_t bits = bits_of_float(f), sign = (bits >> 16) & 0x8000u, rest = bits & 0x7fffffffu;
  uint32_t half;
  if (rest > 0x7f800000u) half = 0x7e00u;
  else if (rest >= 0x477ff000u) half = 0x7c00u;                                  // 65520 and above round to infinity
  else if (rest < 0x38800000u) half = bits_of_float(float_of_bits(rest) + 0.5f) - 0x3f000000u;  // denormal: the adder rounds
  else half = (rest - 0x38000000u + 0xfffu + ((rest >> 13) & 1u)) >> 13;
  out.bits = uint16_t(sign | half);
}

#if defined(WL_AVX512)

using Vec = __m512;
constexpr int kLanes = 16;
constexpr int kRegisters = 32;
WL_INLINE Vec zero() { return _mm512_setzero_ps(); }
WL_INLINE Vec all(float f) { return _mm512_set1_ps(f); }
WL_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
WL_INLINE Vec load(const Bfloat16* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
WL_INLINE Vec load(const Float16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
WL_INLINE Vec load_first(const float* p, int n) { return _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p); }
WL_INLINE Vec load_first(const Bfloat16* p, int n) {
  const __m256i h = _mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), p);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
WL_INLINE Vec load_first(const Float16* p, int n) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), p));
}
WL_INLINE void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
WL_INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
WL_INLINE Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
WL_INLINE Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
WL_INLINE Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
WL_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
WL_INLINE Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }  // b where either is NaN
WL_INLINE Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
WL_INLINE Vec nearest(Vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
WL_INLINE Vec power_of_two(Vec n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
WL_INLINE Vec down(Vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
WL_INLINE __m128 fold(Vec v) {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
WL_INLINE __m128 fold_max(Vec v) {
  const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  return _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

#elif defined(WL_AVX2)

using Vec = __m256;
constexpr int kLanes = 8;
constexpr int kRegisters = 16;
WL_INLINE Vec zero() { return _mm256_setzero_ps(); }
WL_INLINE Vec all(float f) { return _mm256_set1_ps(f); }
WL_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
WL_INLINE Vec load(const Bfloat16* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
WL_INLINE Vec load(const Float16* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
template <class T>
WL_INLINE Vec load_first(const T* p, int n) {
  T padded[kLanes];
  std::memset(padded, 0, sizeof padded);
  std::memcpy(padded, p, size_t(n) * sizeof(T));
  return load(padded);
}
WL_INLINE void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
WL_INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
WL_INLINE Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
WL_INLINE Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
WL_INLINE Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
WL_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
WL_INLINE Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }  // b where either is NaN
WL_INLINE Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
WL_INLINE Vec nearest(Vec a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
WL_INLINE Vec down(Vec a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
WL_INLINE Vec power_of_two(Vec n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
WL_INLINE __m128 fold(Vec v) { return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)); }
WL_INLINE __m128 fold_max(Vec v) { return _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)); }

#else  // four lanes of the compiler's own vectors: NEON on ARM, SSE2 on old x86

typedef float Vec __attribute__((vector_size(16)));
typedef int32_t IntVec __attribute__((vector_size(16)));
constexpr int kLanes = 4;
#if defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif
WL_INLINE Vec all(float f) { return Vec{f, f, f, f}; }
WL_INLINE Vec zero() { return all(0.0f); }
WL_INLINE Vec load(const float* p) { Vec v; std::memcpy(&v, p, sizeof v); return v; }
template <class T>
WL_INLINE Vec load(const T* p) { return Vec{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])}; }
template <class T>
WL_INLINE Vec load_first(const T* p, int n) {
  Vec v = zero();
  for (int i = 0; i < n; ++i) v[i] = widen(p[i]);
  return v;
}
WL_INLINE void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
WL_INLINE Vec add(Vec a, Vec b) { return a + b; }
WL_INLINE Vec sub(Vec a, Vec b) { return a - b; }
WL_INLINE Vec mul(Vec a, Vec b) { return a * b; }
WL_INLINE Vec div(Vec a, Vec b) { return a / b; }
#if defined(__aarch64__)
WL_INLINE Vec fma(Vec a, Vec b, Vec c) { return (Vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
#else
WL_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
#endif
WL_INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }  // b where either is NaN
WL_INLINE Vec min(Vec a, Vec b) { return a < b ? a : b; }
WL_INLINE Vec nearest(Vec a) { return Vec{__builtin_rintf(a[0]), __builtin_rintf(a[1]), __builtin_rintf(a[2]), __builtin_rintf(a[3])}; }
WL_INLINE Vec down(Vec a) { return Vec{__builtin_floorf(a[0]), __builtin_floorf(a[1]), __builtin_floorf(a[2]), __builtin_floorf(a[3])}; }
WL_INLINE Vec power_of_two(Vec n) {
  const IntVec bits = (__builtin_convertvector(n, IntVec) + 127) << 23;
  return (Vec)bits;
}
WL_INLINE Vec fold(Vec v) { return v; }
WL_INLINE Vec fold_max(Vec v) { return v; }

#endif

// The sum of the lanes, always by the same tree: halves down to four lanes, then (0 + 2) + (1 + 3).
WL_INLINE float sum(Vec v) {
  float f[4];
  const auto q = fold(v);
  std::memcpy(f, &q, sizeof f);
  return (f[0] + f[2]) + (f[1] + f[3]);
}

WL_INLINE float largest(Vec v) {
  float f[4];
  const auto q = fold_max(v);
  std::memcpy(f, &q, sizeof f);
  const float a = f[0] > f[2] ? f[0] : f[2], b = f[1] > f[3] ? f[1] : f[3];
  return a > b ? a : b;
}

// Four sums at once by the tree of `sum`: out[i] = sum of v[i].
WL_INLINE void sum4(Vec v0, Vec v1, Vec v2, Vec v3, float* out) {
#if defined(WL_AVX512) || defined(WL_AVX2)
  const __m128 a = fold(v0), b = fold(v1), c = fold(v2), d = fold(v3);
  const __m128 ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
  const __m128 cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
  _mm_storeu_ps(out, _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab)));
#else
  out[0] = sum(v0), out[1] = sum(v1), out[2] = sum(v2), out[3] = sum(v3);
#endif
}

WL_INLINE void store_first(float* p, Vec v, int n) {
  float all_lanes[kLanes];
  store(all_lanes, v);
  std::memcpy(p, all_lanes, size_t(n) * sizeof(float));
}

// e^x within 2 ulp; e^0 is exactly 1, overflow gives infinity, underflow 0, NaN stays NaN.
// x = n ln2 + r with |r| <= ln2 / 2; a degree 6 polynomial in r; 2^n in two factors, so that denormals and the last binade work.
WL_INLINE Vec exponential(Vec x) {
  x = min(all(89.0f), max(all(-104.5f), x));
  const Vec n = nearest(mul(x, all(1.44269504f)));
  Vec r = fma(n, all(-0.693359375f), x);
  r = fma(n, all(2.12194440e-4f), r);
  Vec p = all(1.9875691500e-4f);
  p = fma(p, r, all(1.3981999507e-3f));
  p = fma(p, r, all(8.3334519073e-3f));
  p = fma(p, r, all(4.1665795894e-2f));
  p = fma(p, r, all(1.6666665459e-1f));
  p = fma(p, r, all(5.0000001201e-1f));
  p = add(fma(p, mul(r, r), r), all(1.0f));
  const Vec first = down(mul(n, all(0.5f)));
  return mul(mul(p, power_of_two(first)), power_of_two(sub(n, first)));
}

// Into the second-level cache: asking the first level for streams a tile ahead stalls on its few miss buffers
// (768 x 2048 floats on one Zen 4 core: 21 GB/s into the first level, 28 into the second; 2026-11-24).
WL_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace windlass::WL_ISA
