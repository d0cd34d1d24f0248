// Element types and their conversion to and from float32, in which all arithmetic is done.
//
// Half and BFloat16 are storage types. They replace those of cuda_fp16.h, because NVRTC's wheel contains no
// headers.
#pragma once

namespace tokenfold {

struct Half {
  unsigned short bits;
};

struct BFloat16 {
  unsigned short bits;
};

#ifdef __CUDACC__
__device__ __forceinline__ float wide(Half x) {
  float out;
  asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(x.bits));
  return out;
}

__device__ __forceinline__ void narrow(float x, Half& out) {
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
}
#else
inline float wide(Half x) { return half_to_float(x.bits); }
inline void narrow(float x, Half& out) { out.bits = float_to_half(x); }
#endif

__device__ __forceinline__ float wide(float x) { return x; }
__device__ __forceinline__ void narrow(float x, float& out) { out = x; }

__device__ __forceinline__ float wide(BFloat16 x) {
  return __uint_as_float(static_cast<unsigned>(x.bits) << 16);
}

// Rounds to nearest, ties to even; in software, because sm_75 has no instruction for it.
__device__ __forceinline__ void narrow(float x, BFloat16& out) {
  const unsigned bits = __float_as_uint(x);
  const unsigned rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const bool is_number = (bits & 0x7FFFFFFFu) <= 0x7F800000u;
  out.bits = static_cast<unsigned short>(is_number ? rounded : 0x7FFFu);
}

// 16 bytes of elements, as words.
template <typename T>
struct Pack {
  static constexpr int kWidth = 8;
  static __device__ __forceinline__ void unpack(unsigned word, float* out) {
    out[0] = wide(T{static_cast<unsigned short>(word & 0xFFFFu)});
    out[1] = wide(T{static_cast<unsigned short>(word >> 16)});
  }
  static __device__ __forceinline__ unsigned pack(const float* in) {
    T low, high;
    narrow(in[0], low);
    narrow(in[1], high);
    return low.bits | static_cast<unsigned>(high.bits) << 16;
  }
};

template <>
struct Pack<float> {
  static constexpr int kWidth = 4;
  static __device__ __forceinline__ void unpack(unsigned word, float* out) {
    out[0] = __uint_as_float(word);
  }
  static __device__ __forceinline__ unsigned pack(const float* in) { return __float_as_uint(in[0]); }
};

// Accesses kWidth elements at once, or one by one if rows are not 16-byte aligned. `fetch` is for data that
// is read only once: caches evict it first.
template <typename T, bool kVectors>
struct Move;

template <typename T>
struct Move<T, false> {
  static constexpr int kWidth = 1;
  using Piece = T;
  static __device__ __forceinline__ Piece nothing() { return T{}; }
  static __device__ __forceinline__ Piece fetch(const T* row, int at) { return row[at]; }
  static __device__ __forceinline__ void put(T* row, int at, const Piece& piece) { row[at] = piece; }
  static __device__ __forceinline__ void widen(const Piece& piece, float* out) {
    out[0] = wide(piece);
  }
  static __device__ __forceinline__ Piece narrowed(const float* in) {
    Piece piece;
    narrow(in[0], piece);
    return piece;
  }
};

template <typename T>
struct Move<T, true> {
  static constexpr int kWidth = Pack<T>::kWidth;
  static constexpr int kInWord = kWidth / 4;
  using Piece = uint4;
  static __device__ __forceinline__ Piece nothing() { return {0u, 0u, 0u, 0u}; }
  static __device__ __forceinline__ Piece fetch(const T* row, int at) {
    return __ldcs(reinterpret_cast<const uint4*>(row) + at);
  }
  static __device__ __forceinline__ void put(T* row, int at, const Piece& piece) {
    reinterpret_cast<uint4*>(row)[at] = piece;
  }
  static __device__ __forceinline__ void widen(const Piece& piece, float* out) {
    Pack<T>::unpack(piece.x, out);
    Pack<T>::unpack(piece.y, out + kInWord);
    Pack<T>::unpack(piece.z, out + 2 * kInWord);
    Pack<T>::unpack(piece.w, out + 3 * kInWord);
  }
  static __device__ __forceinline__ Piece narrowed(const float* in) {
    Piece piece;
    piece.x = Pack<T>::pack(in);
    piece.y = Pack<T>::pack(in + kInWord);
    piece.z = Pack<T>::pack(in + 2 * kInWord);
    piece.w = Pack<T>::pack(in + 3 * kInWord);
    return piece;
  }
};

}  // namespace tokenfold
