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

// While an object of this class lives, allocations do not disturb captures on this or any other thread.
class Relaxed {
 public:
  Relaxed() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~Relaxed() { cudaThreadExchangeStreamCaptureMode(&mode_); }

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace

cudaError_t workspace(cudaStream_t stream, size_t bytes, void** out) {
  // Never destroyed, because the driver may shut down first when the process ends.
  static std::mutex& lock = *new std::mutex;
  static auto& pieces = *new std::map<std::pair<int, cudaStream_t>, Piece>;
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  const std::lock_guard<std::mutex> held(lock);
  Piece& piece = pieces[{device, stream}];
  if (piece.bytes < bytes) {
    // At least twice the last piece, so that all earlier pieces together are no larger than this one.
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
