// The part of ONNX Runtime's C interface that these operators use, declared from its documentation.
//
// The interface is a table of functions that is only ever appended to, so an entry is named here by
// its place in the table. The library asks for version 17 of the table, the first that has
// KernelContext_ParallelFor; ONNX Runtime 1.17 and every later one hands it out. Python checks what
// the loaded library computes before it is used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace rankc {

constexpr uint32_t kApiVersion = 17;

// Opaque types of ONNX Runtime.
struct Status;
struct Value;
struct Shape;
struct Context;
struct Info;
struct Domain;
struct SessionOptions;

enum Code : int { kFail = 1, kInvalidArgument = 2 };
enum Type : int { kFloat = 1, kUint8 = 2, kInt8 = 3, kInt32 = 6, kInt64 = 7, kHalf = 10, kAnyType = 0 };
enum Arity : int { kRequired = 0, kVariadic = 2 };

struct ApiBase {
  const void* const* (*get_api)(uint32_t version);
  const char* (*version)();
};

// What an operator is: its schema and its kernel. The fields are read by ONNX Runtime, in order.
struct Operator {
  uint32_t version;
  void* (*create_unchecked)(const Operator*, const void*, const Info*);
  const char* (*name)(const Operator*);
  const char* (*provider)(const Operator*);
  int (*input_type)(const Operator*, size_t);
  size_t (*input_count)(const Operator*);
  int (*output_type)(const Operator*, size_t);
  size_t (*output_count)(const Operator*);
  void (*compute_unchecked)(void*, Context*);
  void (*destroy)(void*);
  int (*input_arity)(const Operator*, size_t);
  int (*output_arity)(const Operator*, size_t);
  int (*input_memory)(const Operator*, size_t);
  int (*variadic_inputs_min)(const Operator*);
  int (*variadic_inputs_alike)(const Operator*);
  int (*variadic_outputs_min)(const Operator*);
  int (*variadic_outputs_alike)(const Operator*);
  Status* (*create)(const Operator*, const void*, const Info*, void**);
  Status* (*compute)(void*, Context*);
  Status* (*infer_shape)(const Operator*, void*);
  int (*first_version)(const Operator*);
  int (*last_version)(const Operator*);
  size_t (*in_place)(int**, int**);
  void (*release_in_place)(int*, int*);
  size_t (*aliases)(int**, int**);
  void (*release_aliases)(int*, int*);
};

// A failure that ONNX Runtime reports to the caller of the session.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The product of two sizes; fails where it has more than 64 bits.
inline int64_t product(int64_t a, int64_t b) {
  int64_t result;
  if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &result))
    throw Error("rankc: a size of an operator is out of range");
  return result;
}

// A tensor as a kernel sees it.
struct Tensor {
  static constexpr size_t kMaxRank = 8;

  const void* data = nullptr;
  int type = 0;
  size_t rank = 0;
  int64_t dims[kMaxRank] = {};

  int64_t rows() const { return rank == 0 ? 1 : dims[0]; }
  // Elements of one row. Without rows, sizes are bounded by nothing.
  int64_t stride() const {
    int64_t count = 1;
    for (size_t i = 1; i < rank; ++i) count = product(count, dims[i]);
    return count;
  }
  int64_t count() const { return product(rows(), stride()); }
  template <class T>
  const T* as() const {
    return static_cast<const T*>(data);
  }
};

class Api {
 public:
  static const void* const* table;

  static Status* status(Code code, const char* message) {
    return call<Status* (*)(int, const char*)>(0)(code, message);
  }
  static void add_operators(SessionOptions* options, const char* name,
                            const std::vector<const Operator*>& operators);

  static int64_t attribute(const Info* info, const char* name, int64_t otherwise);
  static float attribute(const Info* info, const char* name, float otherwise);
  static std::vector<int64_t> integers(const Info* info, const char* name);
  static std::vector<float> floats(const Info* info, const char* name);
  // A weight that no run can change; without data if the input isn't one.
  static Tensor constant(const Info* info, size_t index);

  static size_t input_count(const Context* context);
  static Tensor input(const Context* context, size_t index);
  static void* output(Context* context, const std::vector<int64_t>& dims);
  // Calls body(data, i) for i below count, on the session's threads.
  static void parallel(const Context* context, size_t count, void (*body)(void*, size_t),
                       void* data);

 private:
  template <class F>
  static F call(size_t place) {
    return reinterpret_cast<F>(const_cast<void*>(table[place]));
  }
  static void check(Status* status);
  template <class T, class Get>
  static std::vector<T> list(Get get, const Info* info, const char* name);
  static Tensor tensor_of(const Value* value);
};

// Runs work that may throw, and hands a failure to ONNX Runtime.
template <class Work>
Status* guarded(Work work) {
  try {
    work();
    return nullptr;
  } catch (const Error& error) {
    return Api::status(kInvalidArgument, error.what());
  } catch (const std::exception& error) {
    return Api::status(kFail, error.what());
  }
}

}  // namespace rankc
