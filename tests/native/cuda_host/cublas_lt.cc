// Fake of the part of cuBLASLt that our ops use, for host memory and a single thread, written from its
// documentation. It is stricter than the real library: it rejects all arguments that contradict each other.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <set>

namespace {

// Values of cublasStatus_t, cudaDataType, cublasComputeType_t, cublasLtEpilogue_t and the attributes.
constexpr int kSuccess = 0, kInvalid = 7, kNotSupported = 15;
constexpr int kFloat32 = 0, kFloat16 = 2, kBFloat16 = 14, kComputeFloat32 = 68;
constexpr int kEpilogue = 7, kBiasPointer = 8, kMostWorkspace = 1;
constexpr uint32_t kDefault = 1, kBias = 4, kGeluBias = 36;

struct Context {};
struct Product {
  uint32_t epilogue = kDefault;
  const uint16_t* bias = nullptr;
};
struct Layout {
  int type;
  uint64_t rows, columns;
  int64_t pitch;
  bool operator==(const Layout& other) const {
    return type == other.type && rows == other.rows && columns == other.columns &&
           pitch == other.pitch;
  }
};
struct Preference {
  uint64_t workspace = 0;
};

// The problem that an algorithm was selected for, stored instead of the algorithm.
struct Algorithm {
  uint64_t type, rows, columns, inner, epilogue, workspace, unused[2];
};
struct Result {
  Algorithm algorithm;
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};
static_assert(sizeof(Algorithm) == 64 && sizeof(Result) == 96);

uint64_t refused = 0;

template <typename T>
std::set<const T*>& living() {
  static auto& all = *new std::set<const T*>;
  return all;
}

template <typename T>
int create(T** out, T value) {
  if (!out) return kInvalid;
  living<T>().insert(*out = new T(value));
  return kSuccess;
}

template <typename T>
int destroy(const T* of) {
  if (!living<T>().erase(of)) return kInvalid;
  delete of;
  return kSuccess;
}

template <typename... T>
bool live(const T*... of) {
  return (... && living<T>().count(of));
}

template <typename T>
int take(const void* from, size_t bytes, T* out) {
  if (!from || bytes != sizeof(T)) return kInvalid;
  std::memcpy(out, from, bytes);
  return kSuccess;
}

float wide(uint16_t bits, int type) {
  _Float16 half;
  std::memcpy(&half, &bits, 2);
  if (type == kFloat16) return half;
  const uint32_t word = uint32_t{bits} << 16;
  float out;
  std::memcpy(&out, &word, 4);
  return out;
}

uint16_t narrow(float x, int type) {
  uint16_t out;
  const auto half = static_cast<_Float16>(x);
  std::memcpy(&out, &half, 2);
  if (type == kFloat16) return out;
  uint32_t word;
  std::memcpy(&word, &x, 4);
  return static_cast<uint16_t>((word + 0x7FFFu + (word >> 16 & 1)) >> 16);
}

float gelu(float x) {
  return 0.5f * x * (1 + std::tanh(0.7978845608f * (x + 0.044715f * x * x * x)));
}

bool fit(const Layout& a, const Layout& b, const Layout& c, const Layout& d) {
  return a.type == d.type && b.type == d.type && a.rows == d.rows && b.columns == d.columns &&
         a.columns == b.rows && c == d;
}

Algorithm algorithm_of(const Product& of, const Layout& a, const Layout& d, uint64_t workspace) {
  const auto type = static_cast<uint64_t>(d.type);
  return {type, d.rows, d.columns, a.columns, of.epilogue, workspace, {}};
}

}  // namespace

extern "C" {

// For the tests: the number of columns of D for which no algorithm is found, and the number of objects.
void tokenfold_host_refuse(uint64_t columns) { refused = columns; }
size_t tokenfold_host_living() {
  return living<Product>().size() + living<Layout>().size() + living<Preference>().size();
}

int cublasLtCreate(Context** out) { return create(out, {}); }

int cublasLtMatmulDescCreate(Product** out, int compute, int scale) {
  return compute == kComputeFloat32 && scale == kFloat32 ? create(out, {}) : kNotSupported;
}
int cublasLtMatmulDescSetAttribute(Product* of, int attribute, const void* from, size_t bytes) {
  if (!live(of)) return kInvalid;
  if (attribute == kEpilogue) return take(from, bytes, &of->epilogue);
  return attribute == kBiasPointer ? take(from, bytes, &of->bias) : kInvalid;
}
int cublasLtMatmulDescDestroy(Product* of) { return destroy(of); }

int cublasLtMatrixLayoutCreate(Layout** out, int type, uint64_t rows, uint64_t columns,
                               int64_t pitch) {
  if (type != kFloat16 && type != kBFloat16) return kNotSupported;
  if (!rows || !columns || pitch < static_cast<int64_t>(rows)) return kInvalid;
  return create(out, {type, rows, columns, pitch});
}
int cublasLtMatrixLayoutDestroy(Layout* of) { return destroy(of); }

int cublasLtMatmulPreferenceCreate(Preference** out) { return create(out, {}); }
int cublasLtMatmulPreferenceSetAttribute(Preference* of, int attribute, const void* from,
                                         size_t bytes) {
  return live(of) && attribute == kMostWorkspace ? take(from, bytes, &of->workspace) : kInvalid;
}
int cublasLtMatmulPreferenceDestroy(Preference* of) { return destroy(of); }

// The selected algorithm uses all of the allowed workspace.
int cublasLtMatmulAlgoGetHeuristic(Context* own, Product* of, Layout* a, Layout* b, Layout* c,
                                   Layout* d, Preference* preference, int wanted, Result* out,
                                   int* count) {
  if (!live(own, of, a, b, c, d, preference) || wanted < 1 || !out || !count) return kInvalid;
  *count = 0;
  if (!fit(*a, *b, *c, *d)) return kInvalid;
  const bool known = of->epilogue == kBias || of->epilogue == kGeluBias;
  if (!known || d->columns == refused) return kNotSupported;
  *out = {};
  out->algorithm = algorithm_of(*of, *a, *d, preference->workspace);
  out->workspace = preference->workspace;
  *count = 1;
  return kSuccess;
}

int cublasLtMatmul(Context* own, Product* of, const float* alpha, const uint16_t* a, Layout* of_a,
                   const uint16_t* b, Layout* of_b, const float* beta, const uint16_t* c,
                   Layout* of_c, uint16_t* d, Layout* of_d, const Algorithm* algorithm,
                   unsigned char* workspace, size_t bytes, void* /*stream*/) {
  if (!live(own, of, of_a, of_b, of_c, of_d) || !fit(*of_a, *of_b, *of_c, *of_d)) return kInvalid;
  if (!alpha || !a || !b || !beta || !c || !d || !of->bias || !algorithm) return kInvalid;
  const Algorithm wanted = algorithm_of(*of, *of_a, *of_d, algorithm->workspace);
  if (std::memcmp(&wanted, algorithm, sizeof(wanted)) != 0 || bytes < wanted.workspace)
    return kInvalid;
  if (wanted.workspace > 0) {
    if (!workspace || reinterpret_cast<uintptr_t>(workspace) % 256 != 0) return kInvalid;
    workspace[0] = workspace[wanted.workspace - 1] = 0xFF;
  }
  const int type = of_d->type;
  for (uint64_t j = 0; j < of_d->columns; ++j)
    for (uint64_t i = 0; i < of_d->rows; ++i) {
      float sum = 0;
      for (uint64_t k = 0; k < of_a->columns; ++k)
        sum += wide(a[i + k * of_a->pitch], type) * wide(b[k + j * of_b->pitch], type);
      float value = *alpha * sum + wide(of->bias[i], type);
      // With beta 0, C is not read, so it may be invalid.
      if (*beta != 0) value += *beta * wide(c[i + j * of_c->pitch], type);
      d[i + j * of_d->pitch] = narrow(of->epilogue == kGeluBias ? gelu(value) : value, type);
    }
  return kSuccess;
}

}  // extern "C"
