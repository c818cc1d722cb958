// A few persistent threads that run the chunks of one op.
//
// Idea: a decode step has some hundred parallel regions of 20 to 500 us, so waking a sleeping thread (30 to 60 us) for each is
// too dear. Workers spin for a short while after a region, then sleep; the caller always works too, chunks are claimed
// from one counter, and a worker that wakes late finds nothing left and is not waited for. Which thread runs a chunk never
// changes a result. One region at a time: a second calling thread, or a nested region, runs its chunks alone.
#pragma once
#include <cstddef>
#include <cstdint>

namespace windlass {

using ChunkFn = void (*)(const void* context, int64_t chunk);

// Run fn(context, 0 .. chunks - 1), each once; returns when all are done. `chunks` below 2^31.
void run_chunks(int64_t chunks, ChunkFn fn, const void* context);

// Threads a region may use, the caller included; 1 or more. Takes effect at the next region.
void set_threads(int threads);
int threads();

enum class Scratch : int { kPackedX, kWeightTile, kAttention, kOrder, kBlocks, kFeatures, kCount };

// This thread's buffer of at least `floats`, aligned to 64 bytes, contents undefined; valid until the next call with this kind.
float* scratch(Scratch kind, size_t floats);

template <class Body>
inline void for_chunks(int64_t chunks, const Body& body) {
  run_chunks(chunks, [](const void* context, int64_t chunk) { (*static_cast<const Body*>(context))(chunk); }, &body);
}

}  // namespace windlass
