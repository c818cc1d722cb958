// Fills the table of one instruction set. Included once by each translation unit under cpu/ that names its set.
#pragma once
#include "windlass/attention.h"
#include "windlass/kv_pages.h"
#include "windlass/linear.h"
#include "windlass/rowwise.h"
#if !defined(WL_AVX512)  // has a unit of its own, with VNNI
#include "windlass/packed.h"
#endif

#define WL_TEXT_OF(name) #name
#define WL_TEXT(name) WL_TEXT_OF(name)

namespace windlass::WL_ISA {
extern const KernelTable table;
const KernelTable table{WL_TEXT(WL_ISA), kDirectRows,    read_all,       linear,          norm,             silu_mul,      silu_mul_active,
                        predict_blocks,  score_gates,    rope_and_store, paged_attention, stored_attention, quantize_pages};
}  // namespace windlass::WL_ISA
