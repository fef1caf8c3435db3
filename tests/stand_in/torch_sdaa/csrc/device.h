// A PrivateUse1 backend whose device memory is host memory. Every operator that has no kernel here runs on CPU
// tensors over the same bytes, so results are the CPU's, bit by bit, and writes and views are exact.
#pragma once
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/GeneratorForPrivateuseone.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>
#include <torch/version.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

// Whether torch calls the hooks for generators and for torch.accelerator.
#define NEW_HOOKS (TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 7)

namespace sdaa {
using c10::Device;
using c10::DeviceIndex;
constexpr auto kType = c10::DeviceType::PrivateUse1;
const Device kCpu(c10::kCPU);
const c10::DispatchKeySet kCpuKeys(c10::DispatchKey::CPU), kKeys(c10::DispatchKey::PrivateUse1);

// ---- devices ------------------------------------------------------------------------------------------------
thread_local DeviceIndex current = 0;

DeviceIndex device_count() {
  static const DeviceIndex count = [] {
    const char* seen = std::getenv("SDAA_VISIBLE_DEVICES");
    const std::string list = seen ? seen : "0,1";
    return static_cast<DeviceIndex>(list.empty() ? 0 : 1 + std::count(list.begin(), list.end(), ','));
  }();
  return count;
}

DeviceIndex checked(DeviceIndex index) {
  TORCH_CHECK(index >= 0 && index < device_count(), "invalid sdaa device ordinal ", int(index), ": ",
              int(device_count()), " available");
  return index;
}

// Returns the previous device; raises if the new one does not exist.
DeviceIndex exchange_device(DeviceIndex index) { return std::exchange(current, checked(index)); }

// Used by autograd and `with device:`. There is one stream, and all calls are synchronous.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kType; }
  Device exchangeDevice(Device d) const override { return Device(kType, exchange_device(d.index())); }
  Device getDevice() const override { return Device(kType, current); }
  void setDevice(Device d) const override { exchange_device(d.index()); }
  void uncheckedSetDevice(Device d) const noexcept override { current = d.index(); }
  DeviceIndex deviceCount() const noexcept override { return device_count(); }
  c10::Stream getStream(Device d) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, d); }
  c10::Stream exchangeStream(c10::Stream s) const noexcept override { return s; }
  void record(void**, const c10::Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

// ---- memory -------------------------------------------------------------------------------------------------
struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = c10::alloc_cpu(bytes);
    return {data, data, &c10::free_cpu, Device(kType, current)};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
} allocator;

// A tensor on device `to` that shares and keeps alive the same memory.
at::Tensor alias(const at::Tensor& tensor, Device to) {
  if (!tensor.defined() || tensor.device() == to) return tensor;
  auto* kept = new c10::Storage(tensor.storage());
  c10::Storage storage(c10::Storage::use_byte_size_t{}, kept->nbytes(),
                       c10::DataPtr(const_cast<void*>(kept->data()), kept,
                                    [](void* context) { delete static_cast<c10::Storage*>(context); }, to),
                       c10::GetAllocator(to.type()), /*resizable=*/true);
  auto other = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), to.is_cpu() ? kCpuKeys : kKeys,
                                                        tensor.dtype());
  auto* impl = other.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  // A wrapped Python number does not take part in type promotion.
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
  return other;
}

// Give the device's tensor the shape and memory of its CPU alias, if an operator resized that (`out=`).
void adopt(const at::Tensor& tensor, const at::Tensor& cpu) {
  if (cpu.sizes() == tensor.sizes() && cpu.strides() == tensor.strides() &&
      cpu.storage().data() == tensor.storage().data())
    return;
  auto resized = alias(cpu, tensor.device());
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(resized.storage());
  impl->set_sizes_and_strides(resized.sizes(), resized.strides(), resized.storage_offset());
}

// ---- random numbers -----------------------------------------------------------------------------------------
struct Generator final : at::CPUGeneratorImpl {
  explicit Generator(DeviceIndex index) {
    device_ = Device(kType, index);
    key_set_ = kKeys;
  }
};

at::Generator make_generator(DeviceIndex index) {
  return at::make_generator<Generator>(checked(index < 0 ? current : index));
}
at::Generator& default_generator(DeviceIndex index) {
  static std::vector<at::Generator> all = [] {
    std::vector<at::Generator> made;
    for (int i = 0; i < device_count(); ++i) made.push_back(make_generator(i));
    return made;
  }();
  return all[checked(index < 0 ? current : index)];
}

// While it exists, the CPU's operators use another generator.
struct Lent {
  explicit Lent(const at::Generator& from)
      : lock(mutex()), own(from), cpu(at::detail::getDefaultCPUGenerator()), saved(cpu.get_state()) {
    cpu.set_state(own.get_state());
  }
  ~Lent() {
    own.set_state(cpu.get_state());
    cpu.set_state(saved);
  }
  static std::mutex& mutex() {
    static std::mutex one;
    return one;
  }
  std::lock_guard<std::mutex> lock;
  at::Generator own, cpu;
  at::Tensor saved;
};

// ---- hooks of the backend -----------------------------------------------------------------------------------
struct Hooks final : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return device_count(); }
  DeviceIndex getCurrentDevice() const override { return current; }
  void setCurrentDevice(DeviceIndex index) const override { exchange_device(index); }
  DeviceIndex exchangeDevice(DeviceIndex index) const override { return exchange_device(index); }
  DeviceIndex maybeExchangeDevice(DeviceIndex index) const override {
    return index < 0 ? current : exchange_device(index);
  }
#if NEW_HOOKS
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return device_count() > 0; }
  at::Generator getNewGenerator(DeviceIndex index) const override { return make_generator(index); }
  const at::Generator& getDefaultGenerator(DeviceIndex index) const override { return default_generator(index); }
#endif
};
#if !NEW_HOOKS
REGISTER_GENERATOR_PRIVATEUSE1(make_generator)
#endif

// ---- operators ----------------------------------------------------------------------------------------------
template <class F>
c10::IValue each_tensor(const c10::IValue& value, F f) {
  if (value.isTensor()) return f(value.toTensor());
  if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const auto& tensor : value.toTensorVector()) list.push_back(f(tensor));
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> list;
    for (const auto& tensor : value.toOptionalTensorVector())
      list.push_back(tensor ? std::optional<at::Tensor>(f(*tensor)) : std::nullopt);
    return list;
  }
  return value;
}

// The device an operator works on: its tensors', which must be the same, else the one it was given, else the current.
Device device_of(const c10::OperatorHandle& op, const std::vector<c10::IValue>& args) {
  std::optional<Device> device;
  for (const auto& arg : args) {
    each_tensor(arg, [&](const at::Tensor& tensor) {
      if (!tensor.defined() || tensor.device().type() != kType) return tensor;
      TORCH_CHECK(!device || *device == tensor.device(), "Expected all tensors to be on the same device, but found ",
                  "at least two devices, ", *device, " and ", tensor.device(), "! (", op.schema().name(), ")");
      device = tensor.device();
      return tensor;
    });
    if (!device && arg.isDevice() && arg.toDevice().type() == kType && arg.toDevice().has_index())
      device = arg.toDevice();
  }
  return device.value_or(Device(kType, current));
}

c10::IValue to_cpu(const c10::OperatorHandle& op, const c10::IValue& arg) {
  if (arg.isDevice()) return kCpu;
  if (arg.isGenerator()) return {};  // the CPU's own generator, with the state of this one
  const bool indices = arg.isOptionalTensorList();  // these may be on the CPU, and so may numbers
  return each_tensor(arg, [&](const at::Tensor& tensor) {
    TORCH_CHECK(indices || !tensor.defined() || tensor.dim() == 0 || !tensor.is_cpu(), "Expected all tensors to be ",
                "on the same device, but found at least two devices, sdaa and cpu! (", op.schema().name(), ")");
    return alias(tensor, kCpu);
  });
}

// The generator that an operator uses, if any.
std::optional<at::Generator> generator_of(const c10::OperatorHandle& op, const std::vector<c10::IValue>& args,
                                          Device device) {
  for (const auto& arg : args) {
    if (!arg.isGenerator()) continue;
    TORCH_CHECK(arg.toGenerator().device() == device, "Expected a generator of ", device, ", but found one of ",
                arg.toGenerator().device(), " (", op.schema().name(), ")");
    return arg.toGenerator();
  }
  if (!op.hasTag(at::Tag::nondeterministic_seeded)) return {};
  return default_generator(device.index());
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const std::vector<c10::IValue> args(stack->end() - schema.arguments().size(), stack->end());
  const Device device = device_of(op, args);
  torch::jit::drop(*stack, args.size());
  for (const auto& arg : args) stack->push_back(to_cpu(op, arg));
  const std::vector<c10::IValue> cpu(stack->end() - args.size(), stack->end());

  {
    std::optional<Lent> lent;
    if (const auto generator = generator_of(op, args, device)) lent.emplace(*generator);
    op.callBoxed(stack);
  }

  const auto written = [](const c10::AliasInfo* info) { return info && info->isWrite(); };
  for (size_t r = 0; r < schema.returns().size(); ++r) {
    auto& value = (*stack)[stack->size() - schema.returns().size() + r];
    const auto* info = schema.returns()[r].alias_info();
    if (!written(info)) {
      value = each_tensor(value, [&](const at::Tensor& tensor) { return alias(tensor, device); });
      continue;
    }
    for (size_t i = 0; i < args.size(); ++i) {  // an operator that works in place returns the argument it was given
      const auto* given = schema.arguments()[i].alias_info();
      if (!given || !(*given == *info)) continue;
      // Torch 2.4 returns the mean of half-precision numbers in a new tensor, and leaves the given one as it was.
      if (value.isTensor() && !value.is(cpu[i])) cpu[i].toTensor().copy_(value.toTensor());
      value = args[i];
    }
  }
  for (size_t i = 0; i < args.size(); ++i)
    if (written(schema.arguments()[i].alias_info()) && args[i].isTensor()) adopt(args[i].toTensor(), cpu[i].toTensor());
}

// The CPU's kernels of operators that only change sizes and strides work for any tensor.
void sizes_only(const c10::OperatorHandle& op, torch::jit::Stack* stack) { op.redispatchBoxed(kCpuKeys, stack); }

Device target(std::optional<Device> device) {
  return Device(kType, checked(device && device->has_index() ? device->index() : current));
}

at::Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  c10::DeviceGuard guard(target(device));
  return at::detail::empty_generic(size, &allocator, kKeys, c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<Device> device, std::optional<bool>) {
  c10::DeviceGuard guard(target(device));
  return at::detail::empty_strided_generic(size, stride, &allocator, kKeys, c10::dtype_or_default(dtype));
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  alias(to, kCpu).copy_(alias(from, kCpu));
  return to;
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

// Operators without a derivative, such as c10d's: torch 2.4 does not dispatch them for this device.
TORCH_LIBRARY_IMPL(_, AutogradPrivateUse1, m) {
  if (!c10::Dispatcher::singleton().hasBackendFallbackForDispatchKey(c10::DispatchKey::AutogradPrivateUse1))
    m.fallback(torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  for (auto* name : {"as_strided", "view", "_reshape_alias", "resize_", "set_.source_Storage",
                     "set_.source_Storage_storage_offset", "set_.source_Tensor"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&sizes_only>());
  // Torch selects the kernels of these by device type and has none for this one.
  for (auto* name : {"convolution", "convolution_backward"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&fallback>());
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
}

[[maybe_unused]] const bool registered = [] {
  c10::SetAllocator(kType, &allocator);
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  return true;
}();
}  // namespace sdaa
