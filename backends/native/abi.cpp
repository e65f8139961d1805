#include "abi.h"

namespace rankc {

const void* const* Api::table = nullptr;

void Api::check(Status* status) {
  if (status == nullptr) return;
  std::string message = call<const char* (*)(const Status*)>(2)(status);  // GetErrorMessage
  call<void (*)(Status*)>(93)(status);                                    // ReleaseStatus
  throw Error(message);
}

void Api::add_operators(SessionOptions* options, const char* name,
                        const std::vector<const Operator*>& operators) {
  // One domain for every session of the process: it must outlive them, and they may outlive us.
  static Domain* domain = nullptr;
  if (domain == nullptr) {
    check(call<Status* (*)(const char*, Domain**)>(26)(name, &domain));  // CreateCustomOpDomain
    for (const Operator* each : operators)                               // CustomOpDomain_Add
      check(call<Status* (*)(Domain*, const Operator*)>(27)(domain, each));
  }
  check(call<Status* (*)(SessionOptions*, Domain*)>(28)(options, domain));  // AddCustomOpDomain
}

// A list by the function that reads it; empty where the operator has none of that name.
template <class T, class Get>
std::vector<T> Api::list(Get get, const Info* info, const char* name) {
  size_t size = 0;
  Status* status = get(info, name, nullptr, &size);
  if (status != nullptr) call<void (*)(Status*)>(93)(status);  // ReleaseStatus
  std::vector<T> values(status == nullptr ? size : 0);
  if (!values.empty()) check(get(info, name, values.data(), &size));
  return values;
}

int64_t Api::attribute(const Info* info, const char* name, int64_t otherwise) {
  int64_t value;  // KernelInfoGetAttribute_int64
  Status* status = call<Status* (*)(const Info*, const char*, int64_t*)>(86)(info, name, &value);
  if (status == nullptr) return value;
  call<void (*)(Status*)>(93)(status);  // ReleaseStatus
  return otherwise;
}

float Api::attribute(const Info* info, const char* name, float otherwise) {
  float value;  // KernelInfoGetAttribute_float
  Status* status = call<Status* (*)(const Info*, const char*, float*)>(85)(info, name, &value);
  if (status == nullptr) return value;
  call<void (*)(Status*)>(93)(status);  // ReleaseStatus
  return otherwise;
}

std::vector<int64_t> Api::integers(const Info* info, const char* name) {
  // KernelInfoGetAttributeArray_int64
  auto get = call<Status* (*)(const Info*, const char*, int64_t*, size_t*)>(163);
  return list<int64_t>(get, info, name);
}

std::vector<float> Api::floats(const Info* info, const char* name) {
  // KernelInfoGetAttributeArray_float
  auto get = call<Status* (*)(const Info*, const char*, float*, size_t*)>(162);
  return list<float>(get, info, name);
}

Tensor Api::constant(const Info* info, size_t index) {
  int is_constant = 0;
  const Value* value = nullptr;  // KernelInfoGetConstantInput_tensor
  check(call<Status* (*)(const Info*, size_t, int*, const Value**)>(249)(info, index, &is_constant,
                                                                        &value));
  return is_constant ? tensor_of(value) : Tensor();
}

size_t Api::input_count(const Context* context) {
  size_t count;  // KernelContext_GetInputCount
  check(call<Status* (*)(const Context*, size_t*)>(88)(context, &count));
  return count;
}

Tensor Api::input(const Context* context, size_t index) {
  const Value* value = nullptr;  // KernelContext_GetInput
  check(call<Status* (*)(const Context*, size_t, const Value**)>(90)(context, index, &value));
  return tensor_of(value);
}

Tensor Api::tensor_of(const Value* value) {
  Tensor tensor;
  if (value == nullptr) return tensor;
  Shape* shape = nullptr;  // GetTensorTypeAndShape
  check(call<Status* (*)(const Value*, Shape**)>(65)(value, &shape));
  struct Release {
    Shape* shape;
    ~Release() { call<void (*)(Shape*)>(99)(shape); }  // ReleaseTensorTypeAndShapeInfo
  } release{shape};
  check(call<Status* (*)(const Shape*, int*)>(60)(shape, &tensor.type));   // GetTensorElementType
  check(call<Status* (*)(const Shape*, size_t*)>(61)(shape, &tensor.rank));  // GetDimensionsCount
  if (tensor.rank > Tensor::kMaxRank) throw Error("rankc: a tensor has too many dimensions");
  check(call<Status* (*)(const Shape*, int64_t*, size_t)>(62)(  // GetDimensions
      shape, tensor.dims, tensor.rank));
  void* data = nullptr;  // GetTensorMutableData
  check(call<Status* (*)(const Value*, void**)>(51)(value, &data));
  tensor.data = data;
  return tensor;
}

void* Api::output(Context* context, const std::vector<int64_t>& dims) {
  Value* value = nullptr;  // KernelContext_GetOutput
  check(call<Status* (*)(Context*, size_t, const int64_t*, size_t, Value**)>(91)(
      context, 0, dims.data(), dims.size(), &value));
  void* data = nullptr;  // GetTensorMutableData
  check(call<Status* (*)(Value*, void**)>(51)(value, &data));
  return data;
}

void Api::parallel(const Context* context, size_t count, void (*body)(void*, size_t), void* data) {
  // KernelContext_ParallelFor; no batches: every index is a task of its own
  check(call<Status* (*)(const Context*, void (*)(void*, size_t), size_t, size_t, void*)>(274)(
      context, body, count, 0, data));
}

}  // namespace rankc
