// The arithmetic that a core can do: fused multiply-adds in float32, and dot products of bfloat16
// pairs; and its clock, for what it does in a cycle. benchmarks/probe.py compiles this for the
// machine it runs on; it is in no library.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

// As many sums as hide the latency of one, and still fit into the registers. Each begins with a
// number that the compiler does not know: sums that it could tell to be equal, it would do once.
constexpr int kSums = 12;
constexpr int kRounds = 4096;

std::atomic<float> sink;

// All that was computed is needed.
template <typename Vector>
void keep(const Vector* sums) {
  float all = 0;
  for (int i = 0; i < kSums; ++i) {
    for (size_t j = 0; j < sizeof(Vector) / sizeof(float); ++j) all += sums[i][j];
  }
  sink.store(all, std::memory_order_relaxed);
}

struct Float32 {
  using Vector __attribute__((vector_size(kBytes))) = float;
  static constexpr double operations = 2.0 * kBytes / 4 * kSums * kRounds;

  static void run(const volatile float* first) {
    Vector sums[kSums];
    for (int i = 0; i < kSums; ++i) sums[i] = Vector{} + first[i];
    const Vector a = Vector{} + first[0], b = Vector{} + 1.0f;
    for (int round = 0; round < kRounds; ++round) {
#pragma GCC unroll 12
      for (int i = 0; i < kSums; ++i) sums[i] = sums[i] * a + b;
    }
    keep(sums);
  }
};

#ifdef __AVX512BF16__
struct Bfloat16 {
  static constexpr double operations = 4.0 * 16 * kSums * kRounds;

  static void run(const volatile float* first) {
    __m512 sums[kSums];
    for (int i = 0; i < kSums; ++i) sums[i] = _mm512_set1_ps(first[i]);
    const __m512 factor = _mm512_set1_ps(first[0]);
    const __m512bh a = _mm512_cvtne2ps_pbh(factor, factor);
    const __m512bh b = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5f), _mm512_set1_ps(0.25f));
    for (int round = 0; round < kRounds; ++round) {
#pragma GCC unroll 12
      for (int i = 0; i < kSums; ++i) sums[i] = _mm512_dpbf16_ps(sums[i], a, b);
    }
    keep(sums);
  }
};
#endif

// A chain of additions, each of which waits for the last: one a cycle.
struct Cycles {
  static constexpr double operations = 16.0 * kRounds;

  static void run(const volatile float* first) {
    uint64_t x = 0, step = static_cast<uint64_t>(first[1]);
    for (int round = 0; round < kRounds; ++round) {
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        x += step;
        asm volatile("" : "+r"(x));
      }
    }
    sink.store(static_cast<float>(x), std::memory_order_relaxed);
  }
};

// The sum of the threads' best rates in a millisecond, less than a scheduler's slice: a thread that
// waits for a core says nothing of the core.
template <typename Probe>
double rate(double seconds, int threads) {
  using Clock = std::chrono::steady_clock;
  volatile float first[kSums];
  for (int i = 0; i < kSums; ++i) first[i] = 0.999f + i;
  std::vector<double> rates(threads);

  const auto work = [&](int thread) {
    const auto end = Clock::now() + std::chrono::duration<double>(seconds);
    double best = 0;
    while (Clock::now() < end) {
      const auto began = Clock::now();
      const auto until = began + std::chrono::milliseconds(1);
      double done = 0;
      auto now = began;
      for (; now < until; now = Clock::now()) {
        Probe::run(first);
        done += Probe::operations;
      }
      best = std::max(best, done / std::chrono::duration<double>(now - began).count());
    }
    rates[thread] = best;
  };

  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(work, i);
  work(0);
  for (std::thread& other : others) other.join();

  double sum = 0;
  for (const double r : rates) sum += r;
  return sum;
}

}  // namespace

extern "C" double fma_rate(double seconds, int threads) { return rate<Float32>(seconds, threads); }

// The clocks in Hz while threads add.
extern "C" double clock_rate(double seconds, int threads) { return rate<Cycles>(seconds, threads); }

// 0 where this processor has no such products.
extern "C" double bfloat16_rate([[maybe_unused]] double seconds, [[maybe_unused]] int threads) {
#ifdef __AVX512BF16__
  return rate<Bfloat16>(seconds, threads);
#else
  return 0;
#endif
}
