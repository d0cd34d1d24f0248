// Element types and their way to and from float32, in which all arithmetic is done.
//
// Half and BFloat16 are storage only. They are ours and not those of cuda_fp16.h, because NVRTC's wheel
// brings no headers.
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

// The nearest, halves to even. By hand, for sm_75 has no instruction for it.
__device__ __forceinline__ void narrow(float x, BFloat16& out) {
  const unsigned bits = __float_as_uint(x);
  const unsigned rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const bool is_number = (bits & 0x7FFFFFFFu) <= 0x7F800000u;
  out.bits = static_cast<unsigned short>(is_number ? rounded : 0x7FFFu);
}

// 16 bytes of elements, word by word.
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

// kWidth elements at once, or one by one where rows do not begin on 16 bytes.
template <typename T, bool kVectors>
struct Move;

template <typename T>
struct Move<T, false> {
  static constexpr int kWidth = 1;
  static __device__ __forceinline__ void load(const T* row, int at, float* out) {
    out[0] = wide(row[at]);
  }
  static __device__ __forceinline__ void store(T* row, int at, const float* in) {
    narrow(in[0], row[at]);
  }
};

template <typename T>
struct Move<T, true> {
  static constexpr int kWidth = Pack<T>::kWidth;
  static constexpr int kInWord = kWidth / 4;
  static __device__ __forceinline__ void load(const T* row, int at, float* out) {
    const uint4 words = reinterpret_cast<const uint4*>(row)[at];
    Pack<T>::unpack(words.x, out);
    Pack<T>::unpack(words.y, out + kInWord);
    Pack<T>::unpack(words.z, out + 2 * kInWord);
    Pack<T>::unpack(words.w, out + 3 * kInWord);
  }
  static __device__ __forceinline__ void store(T* row, int at, const float* in) {
    uint4 words;
    words.x = Pack<T>::pack(in);
    words.y = Pack<T>::pack(in + kInWord);
    words.z = Pack<T>::pack(in + 2 * kInWord);
    words.w = Pack<T>::pack(in + 3 * kInWord);
    reinterpret_cast<uint4*>(row)[at] = words;
  }
};

}  // namespace tokenfold
