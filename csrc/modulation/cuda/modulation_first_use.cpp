#include "csrc/modulation/cuda/modulation_first_use.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include "csrc/modulation/cuda/composed_modulation.h"
#include "csrc/trust/difference_of_outputs.h"

namespace frameattn {
namespace {

using at::Tensor;

// On one multiprocessor (run_modulation.cpp) some turns of a unit, the last one not full, in clips and in frames.
constexpr int64_t kClips = 2, kFrames = 3, kRows = 67;

ModulationProblem trial_like(const ModulationProblem& like, bool aligned) {
  at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(0);
  const auto random = [&](at::IntArrayRef sizes, const Tensor& of) {
    return of.defined() ? at::randn(sizes, generator).to(of.options()) : Tensor();
  };
  const int64_t columns = like.first.size(3);
  const auto rows = [&](const Tensor& of) {
    const Tensor drawn = random({kClips, kFrames, kRows, columns}, of);
    if (aligned || !of.defined()) return drawn;
    const Tensor beside = at::empty({drawn.numel() + 1}, drawn.options()).narrow(0, 1, drawn.numel());
    return beside.copy_(drawn.flatten()).view(drawn.sizes());
  };
  const auto vectors = [&](const Tensor& of) {
    return like.of_frames() ? random({kClips, kFrames, columns}, of) : random({kClips, columns}, of);
  };
  ModulationProblem trial = like;
  trial.first = rows(like.first);
  trial.second = rows(like.second);
  trial.scale = vectors(like.scale);
  trial.shift = vectors(like.shift);
  if (like.mean.defined()) {
    const Tensor x = trial.first.to(at::kDouble);
    trial.mean = x.mean(3).to(at::kFloat);
    trial.rstd = (x.var(at::IntArrayRef({3}), 0, false) + 1e-6).rsqrt().to(at::kFloat);
  }
  return trial;
}

ModulationProblem in_double(const ModulationProblem& problem) {
  ModulationProblem wide = problem;
  for (Tensor* t : {&wide.first, &wide.second, &wide.scale, &wide.shift, &wide.mean, &wide.rstd})
    if (t->defined()) *t = t->to(at::kDouble);
  if (wide.dtype) wide.dtype = at::kDouble;
  return wide;
}

}  // namespace

std::string difference_from_composed(const std::function<ModulationResults(const ModulationProblem&)>& kernel,
                                     const ModulationProblem& like, bool aligned) {
  const ModulationProblem trial = trial_like(like, aligned);
  const ModulationResults found = kernel(trial), expected = composed_modulation(in_double(trial));
  for (const auto member : {&ModulationResults::out, &ModulationResults::mean, &ModulationResults::rstd,
                            &ModulationResults::grad_scale, &ModulationResults::grad_shift}) {
    if (!(found.*member).defined()) continue;
    const std::string difference =
        difference_of_outputs(found.*member, expected.*member, (found.*member).scalar_type());
    if (!difference.empty()) return difference;
  }
  return "";
}

}  // namespace frameattn
