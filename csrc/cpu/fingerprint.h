#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace sda_fast::cpu {

// A number of some contents, which others have in one of 2^64 cases. Every step can be undone, so
// that a change of a single word is always told. Eight words are mixed at a time, each with those
// before in its place: one of them waits for its multiplication.
inline uint64_t fingerprint(const void* data, size_t bytes) {
  constexpr size_t kLanes = 8, kBlock = kLanes * sizeof(uint64_t);
  const auto mix = [](uint64_t sum, uint64_t word) {
    return std::rotl(sum ^ word, 31) * uint64_t{0x9E3779B97F4A7C15};
  };

  uint64_t lanes[kLanes];
  for (size_t l = 0; l < kLanes; ++l) lanes[l] = mix(bytes, l);
  const auto add = [&](const char* block) {
    for (size_t l = 0; l < kLanes; ++l) {
      uint64_t word;
      std::memcpy(&word, block + l * sizeof(word), sizeof(word));
      lanes[l] = mix(lanes[l], word);
    }
  };

  const auto* from = static_cast<const char*>(data);
  const char* const end = from + bytes;
  for (; from + kBlock <= end; from += kBlock) add(from);
  if (from < end) {
    char last[kBlock] = {};
    std::memcpy(last, from, static_cast<size_t>(end - from));
    add(last);
  }

  uint64_t result = 0;
  for (const uint64_t lane : lanes) result = mix(result, lane);
  return result ^ result >> 32;
}

}  // namespace sda_fast::cpu
