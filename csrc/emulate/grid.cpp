#include "grid.h"

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <mutex>
#include <numeric>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda.h"
#include "memory.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace sda_fast::emulate {
namespace {

constexpr unsigned int kMostThreads = 1024;
constexpr size_t kStack = 64 * 1024;

struct Failure {
  std::string what;
};

enum class State { kReady, kAtBarrier, kInWarp, kDone };

struct Fibre {
  ucontext_t context;
  State state;
  std::source_location where;  // of what it waits for
  uint32_t mask;               // in a warp: the lanes that it waits for,
  uint64_t value;              // what it gives them
  Lanes lanes;                 // and what they gave
};

std::mutex one_grid;
std::mt19937_64 order;

// Of the grid that runs.
const char* kernel_name;
const std::function<void()>* body;
std::vector<Fibre> fibres;
std::vector<uint64_t> ready;  // a heap of the fibres that can run: their turn, then their number
std::vector<uint64_t> warp_turns;  // until the next barrier
unsigned int running;
bool inside = false;  // a fibre
ucontext_t scheduler;
std::string failure;
void* dynamic_memory;

template <typename... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

std::string place(const std::source_location& where) {
  const std::string file = where.file_name();
  return text(file.substr(file.rfind('/') + 1), ":", where.line());
}

uint3 coordinates(uint64_t index, dim3 size) {
  return {static_cast<unsigned int>(index % size.x),
          static_cast<unsigned int>(index / size.x % size.y),
          static_cast<unsigned int>(index / size.x / size.y)};
}

std::string of(uint3 i, dim3 size) {
  if (size.y == 1 && size.z == 1) return std::to_string(i.x);
  return text("(", i.x, ", ", i.y, ", ", i.z, ")");
}

uint64_t count(dim3 size) { return uint64_t{size.x} * size.y * size.z; }

// The stacks of the fibres, each above a page that nothing may touch.
unsigned char* stack(unsigned int thread) {
  static const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  static unsigned char* const all = [] {
    void* memory = mmap(nullptr, kMostThreads * (kStack + page), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    auto* first = static_cast<unsigned char*>(memory);
    for (unsigned int i = 0; i < kMostThreads; ++i) {
      mprotect(first + i * (kStack + page), page, PROT_NONE);
    }
    return first;
  }();
  return all + thread * (kStack + page) + page;
}

// --- a fibre
// --------------------------------------------------------------------------------------

void start() {
  try {
    (*body)();
  } catch (const Failure& f) {
    failure = f.what;
  }
  fibres[running].state = State::kDone;
}

// From a fibre back to the scheduler, until it is resumed.
void wait(State state, std::source_location where) {
  Fibre& fibre = fibres[running];
  fibre.state = state;
  fibre.where = where;
  swapcontext(&fibre.context, &scheduler);
}

constexpr int kNumberBits = 16;

void make_ready(unsigned int thread) {
  fibres[thread].state = State::kReady;
  const uint64_t turn = warp_turns[thread / warpSize] | (order() & 0xFFFF);
  ready.push_back(turn << kNumberBits | thread);
  std::push_heap(ready.begin(), ready.end());
}

unsigned int next_ready() {
  std::pop_heap(ready.begin(), ready.end());
  const auto thread = static_cast<unsigned int>(ready.back() & ((1u << kNumberBits) - 1));
  ready.pop_back();
  return thread;
}

// All threads at once: at the beginning and behind a barrier. The order is either quite random or
// lets warps run ahead of others for as long as they can: each shows errors that the other hides.
void make_all_ready() {
  const bool ahead = order() % 2 == 0;
  warp_turns.assign((fibres.size() + warpSize - 1) / warpSize, 0);
  for (uint64_t& turn : warp_turns) turn = ahead ? (order() & 0xFFFF) << 16 : 0;
  for (unsigned int i = 0; i < fibres.size(); ++i) make_ready(i);
}

void resume(unsigned int thread) {
  running = thread;
  threadIdx = coordinates(thread, blockDim);
  inside = true;
  swapcontext(&scheduler, &fibres[thread].context);
  inside = false;
}

// --- faults
// ---------------------------------------------------------------------------------------

// A fault of a kernel becomes the failure of its thread, which is left where it stands. (Outside of
// a kernel, faults are what they were: the handlers stand only while a grid runs.)
void on_fault(int number, siginfo_t* info, void*) {
  if (!inside) {
    signal(number, SIG_DFL);  // it comes again, and ends the process
    return;
  }
  if (number == SIGSEGV || number == SIGBUS) {
    const std::string array = beyond(info->si_addr);
    failure = "touches memory " + (array.empty() ? "that is not there" : array);
  } else if (number == SIGFPE) {
    failure = "divides an integer by zero";
  } else {
    failure =
        "does what C++ does not define: a misaligned access, an index beyond a fixed-size array, "
        "a shift or an integer too far";
  }
  fibres[running].state = State::kDone;
  setcontext(&scheduler);
}

struct FaultHandlers {
  static constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};

  FaultHandlers() : memory(4 * kStack) {
    const stack_t own = {.ss_sp = memory.data(), .ss_flags = 0, .ss_size = memory.size()};
    sigaltstack(&own, &old_stack);
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (size_t i = 0; i < std::size(kSignals); ++i) sigaction(kSignals[i], &action, &old[i]);
  }
  ~FaultHandlers() {
    for (size_t i = 0; i < std::size(kSignals); ++i) sigaction(kSignals[i], &old[i], nullptr);
    sigaltstack(&old_stack, nullptr);
  }

  std::vector<unsigned char> memory;
  stack_t old_stack;
  struct sigaction old[std::size(kSignals)];
};

// --- a block
// --------------------------------------------------------------------------------------

// Lets the lanes of a warp go on whose collective operation is complete: every lane of the mask
// that still runs has come to one, with the same mask.
void complete(unsigned int warp) {
  const unsigned int first = warp * warpSize;
  const unsigned int lanes = std::min<unsigned int>(warpSize, fibres.size() - first);
  Fibre* fibre = &fibres[first];
  for (unsigned int i = 0; i < lanes; ++i) {
    if (fibre[i].state != State::kInWarp) continue;
    Lanes given = {{}, 0};
    bool all = true;
    for (unsigned int k = 0; k < lanes; ++k) {
      if ((fibre[i].mask >> k & 1) == 0 || fibre[k].state == State::kDone) continue;
      all = all && fibre[k].state == State::kInWarp && fibre[k].mask == fibre[i].mask;
      given.value[k] = fibre[k].value;
      given.present |= 1u << k;
    }
    if (!all) continue;
    for (unsigned int k = 0; k < lanes; ++k) {
      if ((given.present >> k & 1) == 0) continue;
      fibre[k].lanes = given;
      make_ready(first + k);
    }
  }
}

// Where nothing is ready: a complete barrier lets everybody go on, and everything else is an error.
// Returns whether the block is finished.
bool release_barrier() {
  std::vector<std::string> waits;
  size_t done = 0;
  for (const Fibre& fibre : fibres) {
    if (fibre.state == State::kDone) {
      ++done;
      continue;
    }
    waits.push_back((fibre.state == State::kAtBarrier ? "at the barrier " : "in the warp at ") +
                    place(fibre.where));
  }
  if (done == fibres.size()) return true;

  std::sort(waits.begin(), waits.end());
  if (done > 0 || waits.front() != waits.back() || fibres[0].state != State::kAtBarrier) {
    std::string sum = done > 0 ? text(done, " thread(s) have returned") : "";
    for (auto begin = waits.begin(); begin != waits.end();) {
      const auto end = std::upper_bound(begin, waits.end(), *begin);
      sum += text(sum.empty() ? "" : ", ", end - begin, " wait ", *begin);
      begin = end;
    }
    throw Failure{sum};
  }

  make_all_ready();
  return false;
}

void run_block() {
  poison_shared();
  for (unsigned int i = 0; i < fibres.size(); ++i) {
    Fibre& fibre = fibres[i];
    getcontext(&fibre.context);
    fibre.context.uc_stack = {.ss_sp = stack(i), .ss_flags = 0, .ss_size = kStack};
    fibre.context.uc_link = &scheduler;
    makecontext(&fibre.context, start, 0);
  }
  make_all_ready();

  do {
    while (!ready.empty()) {
      const unsigned int thread = next_ready();
      resume(thread);
      if (!failure.empty()) {
        throw Failure{text("thread ", of(threadIdx, blockDim), " ", failure)};
      }
      const State state = fibres[thread].state;
      if (state == State::kInWarp || state == State::kDone) complete(thread / warpSize);
    }
  } while (!release_barrier());
}

struct DynamicShared {
  explicit DynamicShared(size_t bytes) {
    dynamic_memory = bytes > 0 ? allocate(bytes, aligned_gap(bytes)) : nullptr;
  }
  ~DynamicShared() {
    if (dynamic_memory != nullptr) release(dynamic_memory);
  }
};

void run_blocks(size_t shared) {
  // Blocks may not wait for one another, so that any order of them must do.
  std::vector<uint64_t> blocks(count(gridDim));
  std::iota(blocks.begin(), blocks.end(), uint64_t{0});
  std::shuffle(blocks.begin(), blocks.end(), order);

  const FaultHandlers handlers;
  for (const uint64_t block : blocks) {
    blockIdx = coordinates(block, gridDim);
    const DynamicShared memory(shared);
    try {
      run_block();
      const std::string array = damaged();
      if (!array.empty()) throw Failure{"somebody has written " + array};
    } catch (const Failure& f) {
      throw std::runtime_error(text(kernel_name, ", block ", of(blockIdx, gridDim), " of ",
                                    of({gridDim.x, gridDim.y, gridDim.z}, gridDim), ": ", f.what,
                                    "."));
    }
  }
}

}  // namespace

void seed(uint64_t number) {
  const std::lock_guard lock(one_grid);
  order.seed(number);
}

void run(const char* kernel, dim3 grid, dim3 block, size_t shared,
         const std::function<void()>& thread) {
  const std::lock_guard lock(one_grid);
  if (count(grid) == 0 || count(block) == 0 || count(block) > kMostThreads || block.z > 64 ||
      grid.x > 0x7FFFFFFF || grid.y > 65535 || grid.z > 65535 || shared > kMostShared) {
    throw std::runtime_error(text(kernel, ": the CUDA launch failed: invalid configuration of ",
                                  count(grid), " block(s), ", count(block), " thread(s) and ",
                                  shared, " bytes of shared memory."));
  }
  kernel_name = kernel;
  body = &thread;
  gridDim = grid;
  blockDim = block;
  failure.clear();
  ready.clear();
  fibres.resize(count(block));
  run_blocks(shared);
}

void barrier(std::source_location where) { wait(State::kAtBarrier, where); }

const Lanes& exchange(uint32_t mask, uint64_t value, std::source_location where) {
  const unsigned int lane = running % warpSize;
  if ((mask >> lane & 1) == 0) {
    throw Failure{text("is not in the mask that it gives at ", place(where))};
  }
  Fibre& fibre = fibres[running];
  fibre.mask = mask;
  fibre.value = value;
  wait(State::kInWarp, where);
  return fibre.lanes;
}

uint64_t Lanes::of(int lane, std::source_location where) const {
  if (lane < 0 || lane >= warpSize || (present >> lane & 1) == 0) {
    throw Failure{text("reads lane ", lane, ", which takes no part, at ", place(where))};
  }
  return value[lane];
}

uint32_t Lanes::ballot() const {
  uint32_t bits = 0;
  for (int i = 0; i < warpSize; ++i) {
    if ((present >> i & 1) != 0 && value[i] != 0) bits |= 1u << i;
  }
  return bits;
}

void* dynamic_shared() { return dynamic_memory; }

}  // namespace sda_fast::emulate
