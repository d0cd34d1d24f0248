#include "linear.h"

#include "workspace.h"

namespace tokenfold {
namespace {

using namespace cublas_lt;

// The size that NVIDIA recommends for Hopper; other architectures need less.
constexpr size_t kWorkspace = size_t{32} << 20;

// The handle of the current device, shared by its streams, or null if cuBLASLt creates none. Never
// destroyed, because the driver may shut down first when the process ends.
Handle handle(const Library& with) {
  static std::mutex& lock = *new std::mutex;
  static auto& made = *new std::map<int, Handle>;
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return nullptr;
  const std::lock_guard<std::mutex> held(lock);
  Handle& own = made[device];
  if (!own && with.create(&own) != 0) own = nullptr;
  return own;
}

}  // namespace

Linear::~Linear() {
  const Library* const with = ways_.empty() ? nullptr : Library::find();
  for (const auto& [sizes, way] : ways_) forget(*with, way);
}

void Linear::forget(const Library& with, const Way& way) {
  if (way.product) with.product_destroy(way.product);
  for (const Layout layout : {way.w, way.x, way.y})
    if (layout) with.layout_destroy(layout);
}

// cuBLASLt expects column-major matrices, and reads a row-major matrix as its transpose. It therefore
// computes y^T = w^T x^T, where the bias runs along the rows, as cuBLASLt requires.
const char* Linear::choose(const Library& with, Handle own, const Of& of, Way* way) {
  const int epilogue = of.gelu ? kGeluBias : kBias;
  if (with.product_create(&way->product, kComputeFloat32, kFloat32) ||
      with.product_set(way->product, kEpilogue, &epilogue, sizeof(epilogue)) ||
      with.product_set(way->product, kBiasPointer, &of.bias, sizeof(of.bias)) ||
      with.layout_create(&way->w, of.type, of.out, of.in, of.out) ||
      with.layout_create(&way->x, of.type, of.in, of.rows, of.in) ||
      with.layout_create(&way->y, of.type, of.out, of.rows, of.out))
    return "cuBLASLt does not take these sizes";
  way->bias = of.bias;
  Preference preference = nullptr;
  if (with.preference_create(&preference)) return "cuBLASLt has no memory left";
  Heuristic found{};
  int count = 0;
  const bool asked = with.preference_set(preference, kMostWorkspace, &kWorkspace,
                                         sizeof(kWorkspace)) == 0 &&
                     with.heuristic(own, way->product, way->w, way->x, way->y, way->y,
                                    preference, 1, &found, &count) == 0;
  with.preference_destroy(preference);
  if (!asked || count == 0 || found.state != 0)
    return "cuBLASLt knows no way to multiply these sizes";
  way->algorithm = found.algorithm;
  return nullptr;
}

const char* Linear::run(const Of& of, cudaStream_t stream) {
  const Library* const with = Library::find();
  if (!with) return "found no cuBLASLt";
  const Handle own = handle(*with);
  if (!own) return "cuBLASLt does not start";
  void* room = nullptr;
  if (workspace(stream, kWorkspace, &room) != cudaSuccess) return "no memory for a workspace is left";
  const std::lock_guard<std::mutex> held(lock_);
  const auto [at, is_new] = ways_.try_emplace({of.rows, of.in, of.out, of.type});
  Way& way = at->second;
  if (is_new)
    if (const char* const problem = choose(*with, own, of, &way)) {
      // Otherwise the next run would use the incomplete descriptors.
      forget(*with, way);
      ways_.erase(at);
      return problem;
    }
  if (way.bias != of.bias) {
    if (with->product_set(way.product, kBiasPointer, &of.bias, sizeof(of.bias)))
      return "cuBLASLt refuses the bias";
    way.bias = of.bias;
  }
  const float one = 1.0f, beta = of.residual ? 1.0f : 0.0f;
  const void* const added = of.residual ? of.residual : of.y;
  if (with->multiply(own, way.product, &one, of.w, way.w, of.x, way.x, &beta, added, way.y,
                     of.y, way.y, &way.algorithm, room, kWorkspace, stream))
    return "cuBLASLt failed";
  return nullptr;
}

}  // namespace tokenfold
