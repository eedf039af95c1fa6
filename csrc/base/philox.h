// Counter-based random numbers, the same as blockdraft.rng's: Philox4x32-10 keyed by the request's
// seed.
#pragma once

#include <stdint.h>

namespace blockdraft {

enum Purpose { kAccept = 0, kDraw = 1, kDraft = 2 };

struct Philox {
  uint32_t word[4];

  Philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1)
      : word{c0, c1, c2, c3} {
    for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
      const uint64_t a = uint64_t(word[0]) * 0xD2511F53u, b = uint64_t(word[2]) * 0xCD9E8D57u;
      const uint32_t second = word[1], fourth = word[3];
      word[0] = uint32_t(b >> 32) ^ second ^ k0;
      word[1] = uint32_t(b);
      word[2] = uint32_t(a >> 32) ^ fourth ^ k1;
      word[3] = uint32_t(a);
    }
  }
};

// In [0,1), a multiple of 2^-53.
inline double uniform(int64_t seed, int32_t position, int row, Purpose purpose) {
  const Philox x(uint32_t(position), uint32_t(row), purpose, 0, uint32_t(seed),
                 uint32_t(uint64_t(seed) >> 32));
  return double(int64_t(x.word[0] >> 5) * (int64_t(1) << 26) + (x.word[1] >> 6)) * 0x1p-53;
}

}  // namespace blockdraft
