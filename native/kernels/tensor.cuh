// Tensor core operations of a warp, and asynchronous copies to shared memory. On sm_75, which lacks some of
// both, and on the host, other code gives equal results.
//
// Let g = lane / 4 and t = lane % 4. Of a 16 x 16 matrix in `a`, a lane holds two elements per word: columns
// 2t and 2t + 1 of row g, then of row g + 8, and then columns 2t + 8 and 2t + 9 of both rows. Of a 16 x 8
// matrix in `b`, it holds rows 2t and 2t + 1 of column g, then rows 2t + 8 and 2t + 9. Of 16 x 8 sums in `c`,
// it holds columns 2t and 2t + 1 of row g, then of row g + 8.
#pragma once

#include "attend_arguments.cuh"
#include "numbers.cuh"

namespace tokenfold {

#if !defined(__CUDACC__)

template <typename T>
inline void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  host::multiply(c, a, b0, b1, [](unsigned short bits) { return wide(T{bits}); });
}

inline void load_matrices(unsigned (&out)[4], const void* row) { host::load_matrices(out, row, false); }
inline void load_transposed(unsigned (&out)[4], const void* row) { host::load_matrices(out, row, true); }

inline void copy_16(void* to, const void* from, bool there) { host::copy_later(to, from, there); }
inline void end_copies() { host::end_copies(); }
template <int kLeft>
inline void wait_for_copies() {
  host::wait_for_copies(kLeft);
}

inline float exp2_of(float x) { return std::exp2(x); }
inline float log2_of(float x) { return std::log2(x); }
inline float inverse_of(float x) { return 1.0f / x; }

template <typename T>
inline unsigned packed(float low, float high) {
  const float both[2] = {low, high};
  return Pack<T>::pack(both);
}

#else

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

#if __CUDA_ARCH__ >= 800

__device__ __forceinline__ void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                         unsigned b1, Half) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                         unsigned b1, BFloat16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ unsigned packed(float low, float high, Half) {
  unsigned out;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}

__device__ __forceinline__ unsigned packed(float low, float high, BFloat16) {
  unsigned out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}

__device__ __forceinline__ void copy_16(void* to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(there ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int kLeft>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" : : "n"(kLeft) : "memory");
}

#else

__device__ __forceinline__ void multiply_8(float (&c)[4], unsigned a0, unsigned a1, unsigned b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(b));
}

__device__ __forceinline__ void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                         unsigned b1, Half) {
  multiply_8(c, a[0], a[1], b0);
  multiply_8(c, a[2], a[3], b1);
}

// Tensor cores of sm_75 do not support bfloat16, so each lane gets its rows and columns from other lanes.
// Not inlined, because a kernel has hundreds of these.
static __device__ __noinline__ float4 multiply_by_lanes(float4 c, uint4 a, uint2 b) {
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      float rows[2][2], columns[2][2];
      const unsigned below = half ? b.y : b.x;
      Pack<BFloat16>::unpack(__shfl_sync(kAllLanes, half ? a.z : a.x, 4 * g + pair), rows[0]);
      Pack<BFloat16>::unpack(__shfl_sync(kAllLanes, half ? a.w : a.y, 4 * g + pair), rows[1]);
      Pack<BFloat16>::unpack(__shfl_sync(kAllLanes, below, 8 * t + pair), columns[0]);
      Pack<BFloat16>::unpack(__shfl_sync(kAllLanes, below, 8 * t + 4 + pair), columns[1]);
      c.x += rows[0][0] * columns[0][0] + rows[0][1] * columns[0][1];
      c.y += rows[0][0] * columns[1][0] + rows[0][1] * columns[1][1];
      c.z += rows[1][0] * columns[0][0] + rows[1][1] * columns[0][1];
      c.w += rows[1][0] * columns[1][0] + rows[1][1] * columns[1][1];
    }
  return c;
}

__device__ __forceinline__ void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                         unsigned b1, BFloat16) {
  const float4 sums = multiply_by_lanes({c[0], c[1], c[2], c[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1});
  c[0] = sums.x;
  c[1] = sums.y;
  c[2] = sums.z;
  c[3] = sums.w;
}

template <typename T>
__device__ __forceinline__ unsigned packed(float low, float high, T) {
  const float both[2] = {low, high};
  return Pack<T>::pack(both);
}

__device__ __forceinline__ void copy_16(void* to, const void* from, bool there) {
  *static_cast<uint4*>(to) = there ? *static_cast<const uint4*>(from) : uint4{0u, 0u, 0u, 0u};
}

__device__ __forceinline__ void end_copies() {}

template <int kLeft>
__device__ __forceinline__ void wait_for_copies() {}

#endif

// c += a b. All lanes of the warp must call this.
template <typename T>
__device__ __forceinline__ void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                         unsigned b1) {
  multiply(c, a, b0, b1, T{});
}

// Loads four 8 x 8 matrices of 16-bit elements; lane i passes the address of row i % 8 of matrix i / 8, which
// is 16-byte aligned.
__device__ __forceinline__ void load_matrices(unsigned (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void load_transposed(unsigned (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ float exp2_of(float x) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}

__device__ __forceinline__ float log2_of(float x) {
  float out;
  asm("lg2.approx.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}

// For arguments that are not denormal.
__device__ __forceinline__ float inverse_of(float x) {
  float out;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}

// Packs two elements, the first one in the low half of the word.
template <typename T>
__device__ __forceinline__ unsigned packed(float low, float high) {
  return packed(low, high, T{});
}

#endif

}  // namespace tokenfold
