// The thread pool behind windlass/pool.h.
#include "windlass/pool.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <system_error>
#include <thread>

namespace windlass {
namespace {

constexpr auto kSpin = std::chrono::microseconds(200);  // longer than the Python code between two ops of a step
constexpr int kMaxThreads = 256;

inline void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// A region is published by storing (epoch << 32) into `ticket`; a chunk is claimed by compare-and-swap from epoch|i to epoch|i+1.
// The fields are read before the swap. Before they change, the ticket goes to kClosed of the old epoch: a swap that succeeds
// proves that the region was open when its fields were read.
constexpr uint64_t kClosed = 0xffffffffu;

struct Pool {
  std::atomic<uint64_t> ticket{0};
  std::atomic<int64_t> chunks{0};
  std::atomic<ChunkFn> fn{nullptr};
  std::atomic<const void*> context{nullptr};
  std::atomic<int64_t> done{0};
  std::atomic<int> sleeping{0};
  std::atomic<int> limit{1};    // threads a region may use
  std::atomic<bool> busy{false};
  std::mutex mutex;
  std::condition_variable wake;
  int started = 1;              // threads that exist, the caller included; guarded by `busy`
};

// Never destroyed: detached workers may outlive static destructors.
Pool* pool = new Pool;
thread_local bool inside = false;

bool run_one(Pool& p, uint64_t epoch) {
  uint64_t seen = p.ticket.load(std::memory_order_acquire);
  while (seen >> 32 == epoch) {
    const auto chunk = static_cast<int64_t>(seen & 0xffffffffu);
    const int64_t chunks = p.chunks.load(std::memory_order_acquire);
    const ChunkFn fn = p.fn.load(std::memory_order_acquire);
    const void* context = p.context.load(std::memory_order_acquire);
    if (chunk >= chunks) return false;
    if (p.ticket.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
      fn(context, chunk);
      p.done.fetch_add(1, std::memory_order_release);
      return true;
    }
  }
  return false;
}

uint64_t await_epoch_after(Pool& p, uint64_t epoch) {
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      const uint64_t now = p.ticket.load(std::memory_order_acquire) >> 32;
      if (now != epoch) return now;
      pause_briefly();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  std::unique_lock<std::mutex> lock(p.mutex);
  p.sleeping.fetch_add(1, std::memory_order_seq_cst);
  p.wake.wait(lock, [&] { return p.ticket.load(std::memory_order_seq_cst) >> 32 != epoch; });
  p.sleeping.fetch_sub(1, std::memory_order_relaxed);
  return p.ticket.load(std::memory_order_acquire) >> 32;
}

void work(Pool& p, int index) {
  inside = true;
  uint64_t epoch = 0;
  for (;;) {
    epoch = await_epoch_after(p, epoch);
    if (index >= p.limit.load(std::memory_order_relaxed)) continue;
    while (run_one(p, epoch)) {
    }
  }
}

void start_missing(Pool& p, int wanted) {
  while (p.started < wanted) {
    const int index = p.started;
    try {
      std::thread([&p, index] { work(p, index); }).detach();
    } catch (const std::system_error&) {
      p.limit.store(p.started, std::memory_order_relaxed);  // the machine allows no more threads: go on with these
      return;
    }
    ++p.started;
  }
}

// A forked child has only its calling thread: give it a pool without workers, keeping the limit.
void renew_in_child() {
  const int limit = pool->limit.load(std::memory_order_relaxed);
  pool = new Pool;
  pool->limit.store(limit, std::memory_order_relaxed);
}
const int registered = pthread_atfork(nullptr, nullptr, renew_in_child);

struct Buffer {
  float* data = nullptr;
  size_t floats = 0;
  ~Buffer() { std::free(data); }
};
thread_local Buffer buffers[static_cast<int>(Scratch::kCount)];

}  // namespace

void run_chunks(int64_t chunks, ChunkFn fn, const void* context) {
  Pool& p = *pool;
  const int limit = p.limit.load(std::memory_order_relaxed);
  bool idle = false;
  if (inside || limit < 2 || chunks < 2 || !p.busy.compare_exchange_strong(idle, true, std::memory_order_acquire)) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) fn(context, chunk);
    return;
  }
  start_missing(p, limit);
  const uint64_t epoch = ((p.ticket.load(std::memory_order_relaxed) >> 32) + 1) & 0xffffffffu;
  p.ticket.fetch_or(kClosed, std::memory_order_seq_cst);
  p.chunks.store(chunks, std::memory_order_release);
  p.fn.store(fn, std::memory_order_release);
  p.context.store(context, std::memory_order_release);
  p.done.store(0, std::memory_order_relaxed);
  p.ticket.store(epoch << 32, std::memory_order_seq_cst);
  if (p.sleeping.load(std::memory_order_seq_cst) > 0) {
    std::lock_guard<std::mutex> lock(p.mutex);
    p.wake.notify_all();
  }
  inside = true;
  while (run_one(p, epoch)) {
  }
  inside = false;
  for (int spins = 0; p.done.load(std::memory_order_acquire) < chunks; ++spins) {
    pause_briefly();
    if (spins > 2000) std::this_thread::yield();  // a worker lost its core: lend it ours
  }
  p.busy.store(false, std::memory_order_release);
}

void set_threads(int threads) {
  pool->limit.store(threads < 1 ? 1 : threads > kMaxThreads ? kMaxThreads : threads, std::memory_order_relaxed);
}

int threads() { return pool->limit.load(std::memory_order_relaxed); }

float* scratch(Scratch kind, size_t floats) {
  Buffer& buffer = buffers[static_cast<int>(kind)];
  if (buffer.floats < floats) {
    std::free(buffer.data);
    const size_t rounded = (floats + 1023) / 1024 * 1024;
    buffer.data = static_cast<float*>(std::aligned_alloc(64, rounded * sizeof(float)));
    if (buffer.data == nullptr) std::abort();  // kilobytes to a few megabytes: nothing sensible can follow
    buffer.floats = rounded;
  }
  return buffer.data;
}

}  // namespace windlass
