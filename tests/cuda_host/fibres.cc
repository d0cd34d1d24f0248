// Runs a block's threads as fibres of one thread, in an order that a test chooses.

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

// Dynamic shared memory: the most that any architecture has, and beyond it room to see a write.
constexpr size_t kMostShared = 227 * 1024;
constexpr size_t kBeyond = 4096;
uint4 tokenfold_shared[(kMostShared + kBeyond) / sizeof(uint4)];

namespace host {
namespace {

constexpr size_t kStack = 64 * 1024;
constexpr int kMostThreads = 1024;
constexpr int kProblem = 2000;
// Every float of it is no number.
constexpr int kPoison = 0xFF;

enum class State { kReady, kAtBarrier, kInWarp, kDone };

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
  // By turns, so that a lane that goes on cannot overwrite what another has yet to read.
  unsigned values[2][32];
};

std::vector<Fibre> fibres(kMostThreads);
std::vector<Warp> warps(kMostThreads / 32);
char* stacks = nullptr;
jmp_buf scheduler;
Body body;
void* argument;
int order_kind = 0;
unsigned order_seed = 0;
char problem[200] = "";

void suspend(Fibre& own, State state, int line) {
  own.state = state;
  own.line = line;
  if (_setjmp(own.resume) == 0) _longjmp(scheduler, 1);
}

void enter() {
  body(argument);
  fibres[threadIdx.x].state = State::kDone;
  _longjmp(scheduler, 1);
}

void resume(unsigned thread) {
  Fibre& fibre = fibres[thread];
  threadIdx.x = thread;
  if (_setjmp(scheduler) != 0) return;
  if (fibre.started) _longjmp(fibre.resume, 1);
  fibre.started = true;
  setcontext(&fibre.first);
}

bool fail(const char* what, unsigned thread, int line) {
  std::snprintf(problem, sizeof(problem), "block %u, thread %u, line %d: %s", blockIdx.x, thread,
                line, what);
  return false;
}

// Lets a warp go on whose lanes have all given a value.
bool release_warp(unsigned first, unsigned threads, bool* any) {
  const unsigned last = std::min(first + 32, threads);
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

bool run_block(unsigned threads, std::vector<unsigned>& order, std::minstd_rand& random) {
  for (unsigned i = 0; i < threads; ++i) {
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
    unsigned at_barrier = 0, done = 0;
    for (unsigned thread : order)
      if (fibres[thread].state == State::kReady) resume(thread);
    bool any = false;
    for (unsigned first = 0; first < threads; first += 32)
      if (!release_warp(first, threads, &any)) return false;
    if (any) continue;
    for (unsigned i = 0; i < threads; ++i) {
      if (fibres[i].state == State::kInWarp)
        return fail("not all lanes of the warp take part", i, fibres[i].line);
      at_barrier += fibres[i].state == State::kAtBarrier;
      done += fibres[i].state == State::kDone;
    }
    if (done == threads) return true;
    for (unsigned i = 0; i < threads; ++i) {
      if (fibres[i].state == State::kDone)
        return fail("ended while others wait at a barrier", i, 0);
      if (fibres[i].line != fibres[0].line)
        return fail("threads meet at different barriers", i, fibres[i].line);
    }
    for (unsigned i = 0; i < threads; ++i) fibres[i].state = State::kReady;
  }
}

}  // namespace

void barrier(int line) { suspend(fibres[threadIdx.x], State::kAtBarrier, line); }

const unsigned* exchange(unsigned value, int line) {
  const unsigned thread = threadIdx.x;
  Fibre& own = fibres[thread];
  own.value = value;
  ++own.operations;
  suspend(own, State::kInWarp, line);
  return warps[thread / 32].values[own.operations & 1];
}

int run(const TokenfoldLaunch& launch, Body each, void* user) {
  problem[0] = '\0';
  if (launch.threads > kMostThreads || launch.threads % 32 || launch.shared_bytes > kMostShared) {
    std::snprintf(problem, sizeof(problem), "no GPU launches %u threads with %u bytes of shared memory",
                  launch.threads, launch.shared_bytes);
    return kProblem;
  }
  if (!stacks) {
    void* room = mmap(nullptr, kMostThreads * kStack, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) {
      std::snprintf(problem, sizeof(problem), "no memory for stacks");
      return kProblem;
    }
    stacks = static_cast<char*>(room);
  }
  body = each;
  argument = user;
  std::minstd_rand random(order_seed);
  std::vector<unsigned> order(launch.threads);
  std::iota(order.begin(), order.end(), 0u);
  if (order_kind == 1) std::reverse(order.begin(), order.end());
  std::vector<unsigned> blocks(launch.blocks);
  std::iota(blocks.begin(), blocks.end(), 0u);
  if (order_kind == 1) std::reverse(blocks.begin(), blocks.end());
  if (order_kind == 2) std::shuffle(blocks.begin(), blocks.end(), random);
  unsigned char* shared = reinterpret_cast<unsigned char*>(tokenfold_shared);
  for (unsigned block : blocks) {
    blockIdx.x = block;
    std::memset(shared, kPoison, launch.shared_bytes + kBeyond);
    if (!run_block(launch.threads, order, random)) return kProblem;
    for (size_t i = launch.shared_bytes; i < launch.shared_bytes + kBeyond; ++i)
      if (shared[i] != kPoison) {
        fail("wrote beyond the shared memory", 0, 0);
        return kProblem;
      }
  }
  return TOKENFOLD_OK;
}

}  // namespace host

extern "C" {

// 0 ascending, 1 descending, 2 shuffled anew between any two barriers, from a seed.
void tokenfold_host_order(int kind, unsigned seed) {
  host::order_kind = kind;
  host::order_seed = seed;
}

const char* tokenfold_host_problem() { return host::problem; }

}  // extern "C"
