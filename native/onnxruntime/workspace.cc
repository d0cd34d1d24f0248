#include "workspace.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>

namespace tokenfold {
namespace {

struct Piece {
  void* start = nullptr;
  size_t bytes = 0;
};

// An allocation is no work of a stream: while this lives, no capture on this or another thread minds it.
class Relaxed {
 public:
  Relaxed() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~Relaxed() { cudaThreadExchangeStreamCaptureMode(&mode_); }

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace

cudaError_t workspace(cudaStream_t stream, size_t bytes, void** out) {
  // Never destroyed: at exit the driver may be gone before this is.
  static std::mutex& lock = *new std::mutex;
  static auto& pieces = *new std::map<std::pair<int, cudaStream_t>, Piece>;
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  const std::lock_guard<std::mutex> held(lock);
  Piece& piece = pieces[{device, stream}];
  if (piece.bytes < bytes) {
    // Twice the last one, so that all that were too small are together no larger than this one.
    const size_t larger = std::max(bytes, 2 * piece.bytes);
    const Relaxed relaxed;
    void* start = nullptr;
    if (const cudaError_t error = cudaMalloc(&start, larger)) return error;
    piece = {start, larger};
  }
  *out = piece.start;
  return cudaSuccess;
}

}  // namespace tokenfold
