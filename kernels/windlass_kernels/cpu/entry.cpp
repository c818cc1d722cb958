// The C face of the library: picks an instruction set once, forwards each op. No framework header, no exceptions.
#include <atomic>
#include <cstring>

#include "windlass/feed_forward.h"
#include "windlass/pool.h"
#include "windlass/table.h"

namespace windlass {
namespace portable { extern const KernelTable table; extern const PackedTable packed_table; }
#if defined(__x86_64__)
namespace avx2 { extern const KernelTable table; extern const PackedTable packed_table; }
namespace avx512 { extern const KernelTable table; }
namespace avx512vnni { extern const PackedTable packed_table; }
#endif

namespace {

#if defined(__x86_64__)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"); }
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

// What multiplies packed weights beside a table. AVX-512 without VNNI has no dot product of bytes that beats AVX2's.
const PackedTable* packed_beside([[maybe_unused]] const KernelTable* table) {
#if defined(__x86_64__)
  if (table == &avx512::table && __builtin_cpu_supports("avx512vnni")) return &avx512vnni::packed_table;
  if (table != &portable::table) return &avx2::packed_table;
#endif
  return &portable::packed_table;
}

// Best first; null where this processor cannot run it.
const KernelTable* usable(int rank) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (rank == 0) return has_avx512() ? &avx512::table : nullptr;
  if (rank == 1) return has_avx2() ? &avx2::table : nullptr;
#endif
  return rank == 2 ? &portable::table : nullptr;
}

const KernelTable* best() {
  for (int rank = 0; rank < 2; ++rank)
    if (const KernelTable* table = usable(rank)) return table;
  return &portable::table;
}

std::atomic<const KernelTable*> chosen{best()};

}  // namespace
}  // namespace windlass

#define WL_EXPORT extern "C" __attribute__((visibility("default")))
using namespace windlass;

WL_EXPORT const char* windlass_isa() { return chosen.load()->name; }

// Use the named set from now on; 0 if it is unknown or this processor lacks it. For tests and measurements.
WL_EXPORT int windlass_choose_isa(const char* name) {
  for (int rank = 0; rank < 3; ++rank) {
    const KernelTable* table = usable(rank);
    if (table != nullptr && std::strcmp(table->name, name) == 0) return chosen.store(table), 1;
  }
  return 0;
}

WL_EXPORT void windlass_set_threads(int count) { set_threads(count); }
WL_EXPORT int windlass_threads() { return threads(); }

// Read whole spans of 256 KiB and return their sum: for measuring bandwidth.
WL_EXPORT float windlass_read_all(const float* p, int64_t count) { return chosen.load()->read_all(p, count); }

WL_EXPORT void windlass_linear(const float* x, const void* weight, const float* bias, float* y, int64_t m, int64_t n, int64_t k,
                               int32_t storage) {
  chosen.load()->linear({x, weight, bias, y, m, n, k, storage});
}

WL_EXPORT void windlass_packed_linear(const float* x, const uint8_t* codes, const void* scales, const float* bias, float* y, int64_t m,
                                      int64_t n, int64_t k, int64_t group, float input_scale, int32_t bits) {
  packed_beside(chosen.load())->linear({x, codes, scales, bias, y, m, n, k, group, input_scale, bits});
}

WL_EXPORT void windlass_packed_rows(const int32_t* rows, const uint8_t* codes, const void* scales, float* y, int64_t count, int64_t k,
                                    int64_t group, int32_t bits) {
  packed_beside(chosen.load())->rows({rows, codes, scales, y, count, k, group, bits});
}

WL_EXPORT void windlass_norm(float* x, const float* delta, const float* weight, float* y, int64_t m, int64_t f, float eps) {
  chosen.load()->norm({x, delta, weight, y, m, f, eps});
}

WL_EXPORT void windlass_silu_mul(const float* gate_up, float* y, int64_t m, int64_t f) {
  chosen.load()->silu_mul({gate_up, y, m, f});
}

// The number of blocks that were computed, or -1 for all of them.
WL_EXPORT int64_t windlass_feed_forward(const FeedForward* layer, const float* x, const float* hints, const uint8_t* all_rows,
                                        float* room, float* y, uint8_t* active, float* mass, int64_t m) {
  const KernelTable* table = chosen.load();
  return feed_forward(*table, *packed_beside(table), {layer, x, hints, all_rows, room, y, active, mass, m});
}

WL_EXPORT void windlass_rope_and_store(const float* qkv, const float* cos, const float* sin, const int32_t* positions,
                                       const int32_t* key_angles, const int32_t* slots, void* key_pages, void* value_pages, const float* q_norm,
                                       const float* k_norm, float* q, int64_t tokens, int64_t heads, int64_t kv_heads,
                                       int64_t width, int64_t half, float eps, int32_t interleaved, int32_t storage) {
  chosen.load()->rope_and_store({qkv, cos, sin, positions, key_angles, slots, key_pages, value_pages, q_norm, k_norm, q, tokens, heads,
                                 kv_heads, width, half, eps, interleaved, storage});
}

WL_EXPORT void windlass_paged_attention(const float* query, const void* key_pages, const void* value_pages,
                                        const int32_t* page_table, const int32_t* row_of, const int32_t* positions, float* y,
                                        int64_t tokens, int64_t heads, int64_t kv_heads, int64_t width, int64_t table_width,
                                        int64_t window, float scale, int32_t storage) {
  chosen.load()->paged_attention({query, key_pages, value_pages, page_table, row_of, positions, y, tokens, heads, kv_heads, width,
                                  table_width, window, scale, storage});
}

WL_EXPORT void windlass_stored_attention(const float* query, const uint8_t* pages, const void* tail_keys, const void* tail_values,
                                         const int32_t* page_table, const int32_t* tail_of, const int32_t* row_of,
                                         const int32_t* positions, const float* base_cos, const float* base_sin, float* y,
                                         int64_t tokens, int64_t heads, int64_t kv_heads, int64_t width, int64_t half,
                                         int64_t table_width, int64_t window, float scale, int32_t bits, int32_t storage) {
  chosen.load()->stored_attention({query, pages, tail_keys, tail_values, page_table, tail_of, row_of, positions, base_cos, base_sin,
                                   y, tokens, heads, kv_heads, width, half, table_width, window, scale, bits, storage});
}

WL_EXPORT void windlass_quantize_pages(const void* tail_keys, const void* tail_values, const int32_t* tails, const int32_t* page_ids,
                                       uint8_t* pages, int64_t count, int64_t kv_heads, int64_t width, int32_t bits,
                                       int32_t storage) {
  chosen.load()->quantize_pages({tail_keys, tail_values, tails, page_ids, pages, count, kv_heads, width, bits, storage});
}
