#pragma once

// Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3" (2011): ten rounds of two 32 by 32 bit products turn a counter of four words, under a
// key of two, into four random words.

#include "config.h"
#ifndef SDA_FAST_GPU
#include "shuffle.h"
#ifdef __SSE2__
#include <immintrin.h>
#endif
#endif

namespace sda_fast {

struct Words {
  uint32_t w0, w1, w2, w3;
};

}  // namespace sda_fast

namespace sda_fast::SDA_FAST_VARIANT {

SDA_FAST_FN Words philox(Words c, uint32_t key0, uint32_t key1) {
  SDA_FAST_UNROLL_10
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * c.w0;
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * c.w2;
    c = {static_cast<uint32_t>(product1 >> 32) ^ c.w1 ^ key0, static_cast<uint32_t>(product1),
         static_cast<uint32_t>(product0 >> 32) ^ c.w3 ^ key1, static_cast<uint32_t>(product0)};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return c;
}

#ifndef SDA_FAST_GPU

// The same for several counters at once, a word in the lower half of each lane; the upper halves
// hold what is left of products, which the next ones do not look at.

#if defined(__AVX512F__)
constexpr int kPhiloxLanes = 8;
#elif defined(__AVX2__)
constexpr int kPhiloxLanes = 4;
#else
constexpr int kPhiloxLanes = 2;
#endif

typedef uint64_t PhiloxLanes __attribute__((vector_size(8 * kPhiloxLanes)));
typedef uint32_t PhiloxWords __attribute__((vector_size(8 * kPhiloxLanes), aligned(4), may_alias));

// The product of the lower halves: compilers make a longer one of all 64 bits. (With a mask, of
// all, since GCC 12 warns of its own header without.)
SDA_FAST_FN PhiloxLanes philox_product(PhiloxLanes a, uint32_t factor) {
  const PhiloxLanes b = PhiloxLanes{} + factor;
#if defined(__AVX512F__)
  return reinterpret_cast<PhiloxLanes>(
      _mm512_maskz_mul_epu32(0xFF, reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<PhiloxLanes>(
      _mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__SSE2__)
  return reinterpret_cast<PhiloxLanes>(
      _mm_mul_epu32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
  return (a & 0xFFFFFFFFu) * b;
#endif
}

template <int kCounters>
SDA_FAST_FN void philox(PhiloxLanes (&counters)[kCounters][4], uint32_t key0, uint32_t key1) {
  SDA_FAST_UNROLL_10
  for (int round = 0; round < 10; ++round) {
    for (PhiloxLanes(&c)[4] : counters) {
      const PhiloxLanes product0 = philox_product(c[0], 0xD2511F53u);
      const PhiloxLanes product1 = philox_product(c[2], 0xCD9E8D57u);
      c[0] = (product1 >> 32) ^ c[1] ^ key0;
      c[1] = product1;
      c[2] = (product0 >> 32) ^ c[3] ^ key1;
      c[3] = product0;
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

#endif

}  // namespace sda_fast::SDA_FAST_VARIANT

namespace sda_fast {

// Where a stream of noise stands: the noise of element e of sample s is word e mod 4 of Philox at
// the counter (e / 4, s, step, correction), whatever the batch or the device. The bits of e / 4
// beyond 32 share a word with the correction, which has 16.
struct NoiseKey {
  uint32_t key0, key1, step, correction;
};

}  // namespace sda_fast

namespace sda_fast::SDA_FAST_VARIANT {

SDA_FAST_FN NoiseKey noise_key(int64_t seed, int64_t step, int64_t correction) {
  const auto key = static_cast<uint64_t>(seed);
  return {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32), static_cast<uint32_t>(step),
          static_cast<uint32_t>(correction)};
}

SDA_FAST_FN Words noise_words(NoiseKey key, uint32_t sample, uint64_t quad) {
  const auto high = static_cast<uint32_t>(quad >> 32);
  return philox(
      {static_cast<uint32_t>(quad), sample, key.step, (key.correction & 0xFFFFu) | (high << 16)},
      key.key0, key.key1);
}

#ifndef SDA_FAST_GPU

// Those of kCount neighbouring quads, word by word. The words of two vectors of counters fill one
// of kGroups groups of four lanes, where lane m of group j is of quad m kGroups + j: so to pack
// them, and to put the four numbers of a quad side by side in the end, takes shuffles within groups
// only.

constexpr int kGroups = kPhiloxLanes / 2, kVectorQuads = 4 * kGroups;

// Of the first vector of counters; those of the second are 2 kGroups further.
template <int... kLane>
SDA_FAST_FN PhiloxLanes places(LaneNumbers<kLane...>) {
  return PhiloxLanes{(kLane % 2 * kGroups + kLane / 2)...};
}

template <int kCount>
inline void noise_words(NoiseKey key, uint32_t sample, uint64_t quad,
                        uint32_t (&words)[4][kCount]) {
  static_assert(kCount % kVectorQuads == 0);
  for (int i = 0; i < kCount; i += kVectorQuads) {
    const PhiloxLanes place =
        places(LaneNumbersOf<PhiloxLanes>{}) + (quad + static_cast<uint64_t>(i));
    PhiloxLanes c[2][4];
    for (int half = 0; half < 2; ++half) {
      const PhiloxLanes p = place + static_cast<uint64_t>(2 * kGroups * half);
      c[half][0] = p;
      c[half][1] = PhiloxLanes{} + sample;
      c[half][2] = PhiloxLanes{} + key.step;
      c[half][3] = (p >> 32 << 16) | (key.correction & 0xFFFFu);
    }
    philox(c, key.key0, key.key1);
    static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "lower halves come first");
    for (int w = 0; w < 4; ++w) {
      *reinterpret_cast<PhiloxWords*>(words[w] + i) = shuffle<0, 2, 4, 6>(
          reinterpret_cast<PhiloxWords>(c[0][w]), reinterpret_cast<PhiloxWords>(c[1][w]));
    }
  }
}

#endif

}  // namespace sda_fast::SDA_FAST_VARIANT
