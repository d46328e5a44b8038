// Runs AOTInductor packages that call frameattn's operators, on inputs of which Python knows the outputs. Beside
// NAME.pt2 it reads NAME.cases.pt; examples/export_aoti.py makes both. Exits with 1 if an output is wrong.
//   run_package packages/framedit.pt2 packages/wan_block.pt2
#include <frameattn/frameattn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr double kTolerance = 1e-4;  // of float32, relative to the largest element; the library may be a debug build

// What torch.save wrote.
c10::IValue load(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return torch::pickle_load({std::istreambuf_iterator<char>(file), {}});
}

std::vector<at::Tensor> run(torch::inductor::AOTIModelPackageLoader& package, std::vector<at::Tensor> inputs) {
  // A package knows the strides with which it was exported and does not look at those that come.
  for (auto& input : inputs) input = input.contiguous();
  return package.run(inputs);
}

bool check(const std::string& path) {
  torch::inductor::AOTIModelPackageLoader package(path);
  const c10::IValue cases = load(path.substr(0, path.rfind(".pt2")) + ".cases.pt");
  bool good = true;
  for (const c10::IValue& saved : cases.toListRef()) {
    const auto& tensors = saved.toTupleRef().elements();  // the output, then the inputs
    const at::Tensor expected = tensors.at(0).toTensor();
    std::vector<at::Tensor> inputs;
    for (size_t i = 1; i < tensors.size(); ++i) inputs.push_back(tensors[i].toTensor());

    const at::Tensor output = run(package, inputs).at(0);
    TORCH_CHECK(output.sizes() == expected.sizes(), path, ": got ", output.sizes(), ", expected ", expected.sizes());
    const auto error = ((output - expected).abs().max() / expected.abs().max()).item<double>();
    std::printf("%s %s: largest error %.1e of the largest element\n", path.c_str(), c10::str(inputs[0].sizes()).c_str(),
                error);
    good &= error <= kTolerance;  // false for NaN
  }
  return good;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s PACKAGE.pt2...\n", argv[0]);
    return 2;
  }
  const c10::InferenceMode no_gradients;
  bool good = true;
  try {
    for (int i = 1; i < argc; ++i) good &= check(argv[i]);
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "%s\n", error.what_without_backtrace());
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return good ? 0 : 1;
}
