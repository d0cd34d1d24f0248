// Matrix operations and asynchronous copies of tensor.cuh, for fibres. Included by cuda_host.h.
//
// An asynchronous copy is executed only when it is waited for, so code that reads without waiting gets the
// old content.
#pragma once

#include <functional>
#include <vector>

struct alignas(8) uint2 {
  unsigned x, y;
};

namespace host {

// Words and pointers that the lanes of a warp exchange. A block has up to 32 warps.
struct Shown {
  unsigned words[32][6];
  const void* rows[32];
};

inline Shown& shown() {
  static Shown warps[32];
  return warps[threadIdx.x / 32];
}

// c (16 x 8) += a (16 x 16) b (16 x 8), in the layouts of tensor.cuh.
template <typename Widen>
void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, const Widen& widen) {
  Shown& all = shown();
  unsigned* own = all.words[lane()];
  for (int i = 0; i < 4; ++i) own[i] = a[i];
  own[4] = b0;
  own[5] = b1;
  exchange(0, __LINE__);
  const auto element = [&](unsigned owner, int word, int second) {
    return widen(static_cast<unsigned short>(all.words[owner][word] >> (second ? 16 : 0)));
  };
  const int g = lane() / 4, t = lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int below = i / 2, column = 2 * t + i % 2;
    for (int k = 0; k < 16; ++k) {
      const int half = k / 8, owner = k % 8 / 2;
      c[i] += element(4 * g + owner, 2 * half + below, k % 2) *
              element(4 * column + owner, 4 + half, k % 2);
    }
  }
  // Wait before the next exchange.
  exchange(0, __LINE__);
}

// Loads four 8 x 8 matrices of 16-bit elements, whose rows the lanes point to.
inline void load_matrices(unsigned (&out)[4], const void* row, bool transposed) {
  Shown& all = shown();
  all.rows[lane()] = row;
  exchange(0, __LINE__);
  const int g = lane() / 4, t = lane() % 4;
  for (int matrix = 0; matrix < 4; ++matrix) {
    const auto element = [&](int at_row, int column) -> unsigned {
      return static_cast<const unsigned short*>(all.rows[8 * matrix + at_row])[column];
    };
    out[matrix] = transposed ? element(2 * t, g) | element(2 * t + 1, g) << 16
                             : element(g, 2 * t) | element(g, 2 * t + 1) << 16;
  }
  exchange(0, __LINE__);
}

struct Copies {
  std::vector<std::function<void()>> open;
  std::vector<std::vector<std::function<void()>>> ended;
};

inline Copies& copies() {
  static Copies threads[1024];
  return threads[threadIdx.x];
}

// Copies 16 bytes, or writes 16 zeros; both addresses are 16-byte aligned.
inline void copy_later(void* to, const void* from, bool there) {
  if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16) std::abort();
  copies().open.push_back([=] { there ? std::memcpy(to, from, 16) : std::memset(to, 0, 16); });
}

inline void end_copies() {
  copies().ended.emplace_back();
  copies().ended.back().swap(copies().open);
}

// Waits for all committed groups of copies except the last `left`.
inline void wait_for_copies(int left) {
  auto& ended = copies().ended;
  while (static_cast<int>(ended.size()) > left) {
    for (const auto& copy : ended.front()) copy();
    ended.erase(ended.begin());
  }
}

}  // namespace host

#define __syncwarp() static_cast<void>(host::exchange(0, __LINE__))
