// Fibers, barriers and faults of the emulator; emulator.h says what it is for. One launch at a time.
#include "../device.cuh"

#include <algorithm>
#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include <sys/mman.h>
#include <ucontext.h>

namespace emulator {

Place place;
unsigned char* shared;

namespace {

constexpr std::size_t kStackBytes = 64 << 10;
constexpr int kMaxThreads = 1024, kMaxArguments = 24, kMaxWords = 6;

struct Barrier {
    unsigned generation = 0;
    int arrived = 0;
};
struct Warp {
    Barrier barrier;
    /// Two tables in turn: a fast lane may write the next exchange while a slow one reads this one.
    unsigned words[2][32 * kMaxWords];
    int live = 0;
};
struct Fiber {
    std::jmp_buf state;
    dim3 thread;
    int warp;
    bool started, done;
    Barrier* waits_at;
    unsigned generation, exchanges;
};

typedef void (*Kernel)();

std::jmp_buf scheduler, failure;
std::string message;
std::vector<Fiber> fibers;
std::vector<Warp> warps;
Barrier block_barrier;
int live_threads;
Fiber* current;
unsigned char* stacks;
Kernel kernel;
const std::uint64_t* arguments;
int argument_count;

template <std::size_t... I>
void call(std::index_sequence<I...>) {
    typedef void (*Typed)(decltype(std::uint64_t(I))...);
    reinterpret_cast<Typed>(kernel)(arguments[I]...);
}
template <int Count>
void call_with() {
    if (Count == argument_count) return call(std::make_index_sequence<Count>());
    if constexpr (Count < kMaxArguments) call_with<Count + 1>();
}

void yield() {
    if (_setjmp(current->state) == 0) _longjmp(scheduler, 1);
    place.thread = current->thread;
}
void release(Barrier& barrier) {
    barrier.arrived = 0;
    ++barrier.generation;
}
void wait(Barrier& barrier, int expected) {
    if (++barrier.arrived >= expected) return release(barrier);
    current->waits_at = &barrier;
    current->generation = barrier.generation;
    yield();
    current->waits_at = nullptr;
}
void fiber_main() {
    place.thread = current->thread;
    call_with<1>();
    current->done = true;
    --warps[current->warp].live;
    // A thread that is gone counts as arrived at the block's barrier, as on a device.
    if (--live_threads > 0 && block_barrier.arrived >= live_threads) release(block_barrier);
    _longjmp(scheduler, 1);
}
void start(Fiber& fiber) {
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = stacks + kStackBytes * (&fiber - fibers.data());
    context.uc_stack.ss_size = kStackBytes;
    context.uc_link = nullptr;
    makecontext(&context, fiber_main, 0);
    fiber.started = true;
    setcontext(&context);
}
void resume(Fiber& fiber) {
    current = &fiber;
    if (_setjmp(scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.state, 1);
    start(fiber);
}

unsigned next_random(unsigned& state) {
    state ^= state << 13, state ^= state >> 17, state ^= state << 5;
    return state;
}
/// Orders: each thread to its next wait, forward, backward, or at random; or a warp as far as it gets before the next one.
constexpr unsigned kBackward = 1, kWarpByWarp = 2;  // 0 is forward, any other number random

void order_threads(std::vector<int>& order, unsigned seed, unsigned& random) {
    const int count = static_cast<int>(order.size());
    for (int i = 0; i < count; ++i) order[i] = seed == kBackward ? count - 1 - i : i;
    if (seed <= kWarpByWarp) return;
    for (int i = count - 1; i > 0; --i) std::swap(order[i], order[next_random(random) % (i + 1)]);
}

void describe_stop() {
    int at_block = 0, at_warp = 0;
    for (const Fiber& fiber : fibers) {
        if (!fiber.done) ++(fiber.waits_at == &block_barrier ? at_block : at_warp);
    }
    message = "block (" + std::to_string(place.block.x) + ", " + std::to_string(place.block.y) + ", " + std::to_string(place.block.z) +
              ") stands still: " + std::to_string(at_block) + " threads wait at the block's barrier, " + std::to_string(at_warp) +
              " at a warp's, " + std::to_string(fibers.size() - live_threads) + " are gone";
}

/// Lets each of these threads run to its next wait; false if all of them wait already.
bool run_threads(const std::vector<int>& order, std::size_t first, std::size_t last) {
    bool moved = false;
    for (std::size_t i = first; i < last; ++i) {
        Fiber& fiber = fibers[order[i]];
        if (fiber.done || (fiber.waits_at != nullptr && fiber.waits_at->generation == fiber.generation)) continue;
        resume(fiber);
        moved = true;
    }
    return moved;
}

/// False if threads wait for each other for ever.
bool run_block(unsigned seed, unsigned& random) {
    static std::vector<int> order;  // static, for a fault leaves this function by a long jump
    order.resize(fibers.size());
    live_threads = static_cast<int>(fibers.size());
    block_barrier = Barrier();
    for (Warp& warp : warps) warp.barrier = Barrier(), warp.live = 0;
    for (std::size_t i = 0; i < fibers.size(); ++i) {
        const unsigned thread = static_cast<unsigned>(i);
        fibers[i] = Fiber{{}, {thread, 0, 0}, static_cast<int>(i / 32), false, false, nullptr, 0, 0};
        ++warps[i / 32].live;
    }
    while (live_threads > 0) {
        bool moved = false;
        order_threads(order, seed, random);
        if (seed != kWarpByWarp) {
            moved = run_threads(order, 0, order.size());
        } else {
            for (std::size_t first = 0; first < order.size(); first += 32) {
                while (run_threads(order, first, std::min(first + 32, order.size()))) moved = true;
            }
        }
        if (!moved) return describe_stop(), false;
    }
    return true;
}

void on_fault(int, siginfo_t* info, void*) {
    char text[160];
    std::snprintf(text, sizeof text, "block (%u, %u, %u), thread %u: access beyond an argument, at address %p", place.block.x, place.block.y,
                  place.block.z, place.thread.x, info->si_addr);
    message = text;
    siglongjmp(failure, 1);
}

bool run_grid(dim3 grid, std::size_t shared_bytes, unsigned seed) {
    unsigned random = seed | 1;
    static std::vector<unsigned char> memory;
    memory.assign(shared_bytes + 16, 0);
    shared = memory.data() + (16 - reinterpret_cast<std::uintptr_t>(memory.data()) % 16) % 16;
    for (unsigned z = 0; z < grid.z; ++z) {
        for (unsigned y = 0; y < grid.y; ++y) {
            for (unsigned x = 0; x < grid.x; ++x) {
                place.block = {x, y, z};
                std::memset(shared, 0xff, shared_bytes);
                if (!run_block(seed, random)) return false;
            }
        }
    }
    return true;
}

}  // namespace

void sync_block() { wait(block_barrier, live_threads); }
void sync_warp() {
    Warp& warp = warps[current->warp];
    // A full mask names lanes that are gone or were never launched: undefined on a device, so it waits for ever here.
    wait(warp.barrier, 32);
}
const unsigned* exchange(const unsigned* mine, int words) {
    Warp& warp = warps[current->warp];
    unsigned* table = warp.words[current->exchanges++ % 2];
    std::memcpy(table + words * (current->thread.x % 32), mine, sizeof(unsigned) * words);
    sync_warp();
    return table;
}
void fail(const char* what) {
    char text[160];
    std::snprintf(text, sizeof text, "block (%u, %u, %u), thread %u: %s", place.block.x, place.block.y, place.block.z, place.thread.x, what);
    message = text;
    siglongjmp(failure, 1);
}

}  // namespace emulator

using namespace emulator;

/// Null, or what went wrong; valid until the next launch. Arguments are addresses and 32-bit integers, eight bytes each.
extern "C" __attribute__((visibility("default"))) const char* windlass_emulate(void (*entry)(), const std::uint64_t* values, int count,
                                                                               const unsigned* grid, unsigned threads, unsigned shared_bytes,
                                                                               unsigned seed) {
    if (count < 1 || count > kMaxArguments || threads < 1 || threads > kMaxThreads) return "launch beyond the emulator's limits";
    if (stacks == nullptr) {
        void* memory = mmap(nullptr, kStackBytes * kMaxThreads, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) return "no memory for the stacks of threads";
        stacks = static_cast<unsigned char*>(memory);
    }
    kernel = entry, arguments = values, argument_count = count;
    fibers.assign(threads, Fiber());
    warps.assign((threads + 31) / 32, Warp());
    place.block_size = {threads, 1, 1};
    place.grid_size = {grid[0], grid[1], grid[2]};
    struct sigaction action = {}, before = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGSEGV, &action, &before);
    message.clear();
    if (sigsetjmp(failure, 1) == 0) run_grid(place.grid_size, shared_bytes, seed);
    sigaction(SIGSEGV, &before, nullptr);
    return message.empty() ? nullptr : message.c_str();
}
