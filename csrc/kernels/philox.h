#pragma once

// Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3" (2011): ten rounds of two 32 by 32 bit products turn a counter of four words, under a
// key of two, into four random words.

#include "config.h"

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

}  // namespace sda_fast::SDA_FAST_VARIANT
