// Enough of CUDA to run kernels on a CPU, one thread after the other: each thread of a block is a fiber that hands over at
// __syncthreads. It shows the arithmetic and the indexing, and no races between blocks.
#include <ucontext.h>

#include <cmath>
#include <functional>
#include <utility>
#include <vector>

using std::fabs;
using std::log;
using std::sqrt;

#define __global__ static
#define __device__ static
#define __forceinline__ inline
#define __shared__ static
#define __align__(n) alignas(n)

struct Dimensions {
    unsigned x, y;
};
static Dimensions blockIdx, blockDim, threadIdx;

template <class T>
static T atomicAdd(T* to, T value) {
    const T before = *to;
    *to += value;
    return before;
}

namespace fibers {
constexpr size_t stack_bytes = 1 << 16;
static ucontext_t scheduler;
static std::vector<ucontext_t> threads;
static std::vector<std::vector<char>> stacks;
static std::vector<char> finished;
static std::function<void()> kernel;

static void begin() {
    kernel();
    finished[threadIdx.x] = 1;
}

static void run_block() {
    const unsigned count = blockDim.x;
    threads.resize(count);
    stacks.resize(count, std::vector<char>(stack_bytes));
    finished.assign(count, 0);
    for (unsigned t = 0; t < count; ++t) {
        getcontext(&threads[t]);
        threads[t].uc_stack.ss_sp = stacks[t].data();
        threads[t].uc_stack.ss_size = stack_bytes;
        threads[t].uc_link = &scheduler;
        makecontext(&threads[t], begin, 0);
    }
    for (bool some = true; some;) {
        some = false;
        for (unsigned t = 0; t < count; ++t) {
            if (finished[t]) continue;
            some = true;
            threadIdx.x = t;
            swapcontext(&scheduler, &threads[t]);
        }
    }
}

template <class... A, size_t... N>
static void launch(void (*function)(A...), void** arguments, const unsigned* grid, unsigned block,
                   std::index_sequence<N...>) {
    kernel = [=] { function(*static_cast<A*>(arguments[N])...); };
    blockDim = {block, 1};
    for (blockIdx.y = 0; blockIdx.y < grid[1]; ++blockIdx.y)
        for (blockIdx.x = 0; blockIdx.x < grid[0]; ++blockIdx.x) run_block();
}

template <class... A>
static void launch(void (*function)(A...), void** arguments, const unsigned* grid, unsigned block) {
    launch(function, arguments, grid, block, std::index_sequence_for<A...>{});
}
} // namespace fibers

static void __syncthreads() { swapcontext(&fibers::threads[threadIdx.x], &fibers::scheduler); }

#define LAUNCHER(name)                                                                              \
    extern "C" void launch_##name(void** arguments, const unsigned* grid, unsigned block) {         \
        fibers::launch(name, arguments, grid, block);                                               \
    }
