// The Python module, and "tccl": a process-group backend in which gloo works on the device memory's CPU aliases.
// It is C++ because with torch 2.4 a backend defined in Python cannot be combined with gloo in "cpu:gloo,sdaa:tccl".
// The other two files are included instead of compiled separately, because parsing torch's headers takes the time.
#include "autocast.h"
#include "device.h"

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/utils/pybind.h>

namespace sdaa {
using Tensors = std::vector<at::Tensor>;
using Lists = std::vector<Tensors>;
using WorkPtr = c10::intrusive_ptr<c10d::Work>;

at::Tensor cpu(const at::Tensor& tensor) {
  TORCH_CHECK(tensor.device().type() == kType, "tccl: expected a tensor on sdaa, got one on ", tensor.device());
  return alias(tensor.detach(), kCpu);
}

template <class T>
std::vector<T> cpu(const std::vector<T>& all) {
  std::vector<T> out;
  for (const auto& one : all) out.push_back(cpu(one));
  return out;
}

// DDP takes the result from the work object, so it must hold the tensors on the device.
template <class T>
WorkPtr with_result(const WorkPtr& work, T result) {
  auto type = c10::IValue(result).type();
  return c10d::Work::create_from_future(work->getFuture()->then(
      [result = std::move(result)](c10::ivalue::Future& done) {
        done.value();  // rethrows gloo's error
        return c10::IValue(result);
      },
      type));
}

struct Tccl final : c10d::Backend {
  explicit Tccl(c10::intrusive_ptr<c10d::Backend> gloo)
      : Backend(gloo->getRank(), gloo->getSize()), gloo(std::move(gloo)) {}
  const std::string getBackendName() const override { return "tccl"; }

  WorkPtr broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) override {
    auto host = cpu(tensors);
    return with_result(gloo->broadcast(host, options), tensors);
  }
  WorkPtr allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) override {
    auto host = cpu(tensors);
    return with_result(gloo->allreduce(host, options), tensors);
  }
  WorkPtr reduce(Tensors& tensors, const c10d::ReduceOptions& options) override {
    auto host = cpu(tensors);
    return with_result(gloo->reduce(host, options), tensors);
  }
  WorkPtr allgather(Lists& outputs, Tensors& inputs, const c10d::AllgatherOptions& options) override {
    auto to = cpu(outputs);
    auto from = cpu(inputs);
    return with_result(gloo->allgather(to, from, options), outputs);
  }
  WorkPtr _allgather_base(at::Tensor& output, at::Tensor& input, const c10d::AllgatherOptions& options) override {
    auto to = cpu(output).view(-1);  // gloo divides along the first dimension, callers only count elements
    auto from = cpu(input).view(-1);
    return with_result(gloo->_allgather_base(to, from, options), output);
  }
  WorkPtr gather(Lists& outputs, Tensors& inputs, const c10d::GatherOptions& options) override {
    auto to = cpu(outputs);
    auto from = cpu(inputs);
    return with_result(gloo->gather(to, from, options), outputs);
  }
  WorkPtr scatter(Tensors& outputs, Lists& inputs, const c10d::ScatterOptions& options) override {
    auto to = cpu(outputs);
    auto from = cpu(inputs);
    return with_result(gloo->scatter(to, from, options), outputs);
  }
  WorkPtr barrier(const c10d::BarrierOptions& options) override { return gloo->barrier(options); }
  WorkPtr send(Tensors& tensors, int to, int tag) override {
    auto host = cpu(tensors);
    return gloo->send(host, to, tag);
  }
  WorkPtr recv(Tensors& tensors, int from, int tag) override {
    auto host = cpu(tensors);
    return gloo->recv(host, from, tag);
  }

  c10::intrusive_ptr<c10d::Backend> gloo;
};
}  // namespace sdaa

PYBIND11_MODULE(_C, m) {
  m.def("device_count", [] { return int(sdaa::device_count()); });
  m.def("current_device", [] { return int(sdaa::current); });
  m.def("exchange_device", [](c10::DeviceIndex index) { return int(sdaa::exchange_device(index)); });
  m.def("default_generator", [](c10::DeviceIndex index) { return sdaa::default_generator(index); });
  m.def("tccl", [](c10::intrusive_ptr<c10d::Backend> gloo) -> c10::intrusive_ptr<c10d::Backend> {
    return c10::make_intrusive<sdaa::Tccl>(std::move(gloo));
  });
}
