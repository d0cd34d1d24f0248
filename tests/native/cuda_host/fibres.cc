// Runs the threads of a cluster of blocks as fibres of one thread, in an order chosen by a test.

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <random>
#include <vector>

#include "cuda_host.h"

Index threadIdx, blockIdx;

// Dynamic shared memory: the maximum of any architecture, and a guard area to detect writes beyond it.
constexpr size_t kMostShared = 227 * 1024;
constexpr size_t kBeyond = 4096;
constexpr unsigned kMostCluster = 8;
constexpr size_t kApart = kMostShared + kBeyond;  // Distance between blocks of a cluster.
uint4 tokenfold_shared[kMostCluster * kApart / sizeof(uint4)];

namespace host {
namespace {

constexpr size_t kStack = 64 * 1024;
constexpr unsigned kMostThreads = 1024;
constexpr unsigned kMostFibres = kMostCluster * kMostThreads;
constexpr int kProblem = 2000;
// Pattern that is NaN as a float.
constexpr int kPoison = 0xFF;

enum class State { kReady, kAtBarrier, kAtCluster, kInWarp, kDone };

struct Fibre {
  ucontext_t first;
  jmp_buf resume;
  bool started;
  State state;
  int line;
  unsigned value;
  int operations;
};

struct Warp {
  // Alternate buffers, so that a lane that continues cannot overwrite values that another has yet to read.
  unsigned values[2][32];
};

std::vector<Fibre> fibres(kMostFibres);
std::vector<Warp> warps(kMostFibres / 32);
char* stacks = nullptr;
jmp_buf scheduler;
Body body;
void* argument;
unsigned current, block_threads, blocks_together, first_block;
int order_kind = 0;
unsigned order_seed = 0;
int processor_count = 0;
char problem[200] = "";

void suspend(Fibre& own, State state, int line) {
  own.state = state;
  own.line = line;
  if (_setjmp(own.resume) == 0) _longjmp(scheduler, 1);
}

void enter() {
  body(argument);
  fibres[current].state = State::kDone;
  _longjmp(scheduler, 1);
}

char* shared_of(unsigned rank) { return reinterpret_cast<char*>(tokenfold_shared) + rank * kApart; }

// The fibre whose variables the kernel sees.
void become(unsigned fibre) {
  current = fibre;
  threadIdx.x = fibre % block_threads;
  blockIdx.x = first_block + fibre / block_threads;
}

void resume(unsigned index) {
  Fibre& fibre = fibres[index];
  become(index);
  if (_setjmp(scheduler) != 0) return;
  if (fibre.started) _longjmp(fibre.resume, 1);
  fibre.started = true;
  setcontext(&fibre.first);
}

bool fail(const char* what, unsigned fibre, int line) {
  become(fibre);
  std::snprintf(problem, sizeof(problem), "block %u, thread %u, line %d: %s", blockIdx.x,
                threadIdx.x, line, what);
  return false;
}

// Resumes a warp when all of its lanes have passed a value.
bool release_warp(unsigned first, bool* any) {
  const unsigned last = first + 32;
  unsigned waiting = 0;
  for (unsigned i = first; i < last; ++i) waiting += fibres[i].state == State::kInWarp;
  if (waiting < 32) return true;
  Warp& warp = warps[first / 32];
  for (unsigned i = first; i < last; ++i) {
    if (fibres[i].line != fibres[first].line)
      return fail("lanes of a warp meet in different operations", i, fibres[i].line);
    warp.values[fibres[i].operations & 1][i - first] = fibres[i].value;
    fibres[i].state = State::kReady;
  }
  *any = true;
  return true;
}

// Resumes fibres if all of them wait in the same state at the same line; otherwise reports an error.
bool release(unsigned first, unsigned last, State state, bool* any) {
  unsigned waiting = 0, done = 0;
  for (unsigned i = first; i < last; ++i) {
    waiting += fibres[i].state == state;
    done += fibres[i].state == State::kDone;
  }
  if (waiting == 0 || waiting + done < last - first) return true;
  for (unsigned i = first; i < last; ++i) {
    if (fibres[i].state == State::kDone)
      return fail("ended while others wait at a barrier", i, 0);
    if (fibres[i].line != fibres[first].line)
      return fail("threads meet at different barriers", i, fibres[i].line);
  }
  for (unsigned i = first; i < last; ++i) fibres[i].state = State::kReady;
  *any = true;
  return true;
}

bool run_cluster(std::vector<unsigned>& order, std::minstd_rand& random) {
  const unsigned all = order.size();
  for (unsigned i = 0; i < all; ++i) {
    Fibre& fibre = fibres[i];
    fibre.started = false;
    fibre.state = State::kReady;
    fibre.operations = 0;
    getcontext(&fibre.first);
    fibre.first.uc_stack.ss_sp = stacks + i * kStack;
    fibre.first.uc_stack.ss_size = kStack;
    fibre.first.uc_link = nullptr;
    makecontext(&fibre.first, enter, 0);
  }
  for (;;) {
    if (order_kind == 2) std::shuffle(order.begin(), order.end(), random);
    for (unsigned fibre : order)
      if (fibres[fibre].state == State::kReady) resume(fibre);
    bool any = false;
    for (unsigned first = 0; first < all; first += 32)
      if (!release_warp(first, &any)) return false;
    if (any) continue;
    for (unsigned i = 0; i < all; ++i)
      if (fibres[i].state == State::kInWarp)
        return fail("not all lanes of the warp take part", i, fibres[i].line);
    for (unsigned first = 0; first < all; first += block_threads)
      if (!release(first, first + block_threads, State::kAtBarrier, &any)) return false;
    if (any) continue;
    if (!release(0, all, State::kAtCluster, &any)) return false;
    if (any) continue;
    for (unsigned i = 0; i < all; ++i)
      if (fibres[i].state != State::kDone)
        return fail("threads meet at different barriers", i, fibres[i].line);
    return true;
  }
}

}  // namespace

void barrier(int line) { suspend(fibres[current], State::kAtBarrier, line); }
void cluster_barrier(int line) { suspend(fibres[current], State::kAtCluster, line); }
int cluster_count() { return static_cast<int>(blocks_together); }
int cluster_rank() { return static_cast<int>(current / block_threads); }
int processors() { return processor_count; }

void* cluster_place(void* own, int rank) {
  const size_t offset = static_cast<char*>(own) - reinterpret_cast<char*>(tokenfold_shared);
  return shared_of(rank) + offset % kApart;
}

const unsigned* exchange(unsigned value, int line) {
  const unsigned warp = current / 32;
  Fibre& own = fibres[current];
  own.value = value;
  ++own.operations;
  suspend(own, State::kInWarp, line);
  return warps[warp].values[own.operations & 1];
}

int run(const TokenfoldLaunch& launch, Body each, void* user) {
  problem[0] = '\0';
  if (launch.threads > kMostThreads || launch.threads % 32 || launch.shared_bytes > kMostShared) {
    std::snprintf(problem, sizeof(problem), "no GPU launches %u threads with %u bytes of shared memory",
                  launch.threads, launch.shared_bytes);
    return kProblem;
  }
  if (launch.cluster > kMostCluster || launch.cluster == 0 || launch.blocks % launch.cluster) {
    std::snprintf(problem, sizeof(problem), "no GPU launches %u blocks in clusters of %u",
                  launch.blocks, launch.cluster);
    return kProblem;
  }
  if (!stacks) {
    void* room = mmap(nullptr, kMostFibres * kStack, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) {
      std::snprintf(problem, sizeof(problem), "no memory for stacks");
      return kProblem;
    }
    stacks = static_cast<char*>(room);
  }
  body = each;
  argument = user;
  block_threads = launch.threads;
  blocks_together = launch.cluster;
  std::minstd_rand random(order_seed);
  std::vector<unsigned> order(launch.threads * launch.cluster);
  std::iota(order.begin(), order.end(), 0u);
  if (order_kind == 1) std::reverse(order.begin(), order.end());
  std::vector<unsigned> clusters(launch.blocks / launch.cluster);
  std::iota(clusters.begin(), clusters.end(), 0u);
  if (order_kind == 1) std::reverse(clusters.begin(), clusters.end());
  if (order_kind == 2) std::shuffle(clusters.begin(), clusters.end(), random);
  for (unsigned cluster : clusters) {
    first_block = cluster * launch.cluster;
    for (unsigned rank = 0; rank < launch.cluster; ++rank)
      std::memset(shared_of(rank), kPoison, launch.shared_bytes + kBeyond);
    if (!run_cluster(order, random)) return kProblem;
    for (unsigned rank = 0; rank < launch.cluster; ++rank) {
      const char* bytes = shared_of(rank);
      for (size_t i = launch.shared_bytes; i < launch.shared_bytes + kBeyond; ++i)
        if (static_cast<unsigned char>(bytes[i]) != kPoison) {
          fail("wrote beyond the shared memory", rank * launch.threads, 0);
          return kProblem;
        }
    }
  }
  return TOKENFOLD_OK;
}

}  // namespace host

extern "C" {

// Thread order: 0 ascending, 1 descending, 2 shuffled between any two barriers, with a seed.
void tokenfold_host_order(int kind, unsigned seed) {
  host::order_kind = kind;
  host::order_seed = seed;
}

// Number of multiprocessors of the simulated GPU, for tokenfold_cuda_spread.
void tokenfold_host_processors(int count) { host::processor_count = count; }

const char* tokenfold_host_problem() { return host::problem; }

}  // extern "C"
