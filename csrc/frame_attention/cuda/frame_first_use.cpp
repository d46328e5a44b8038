#include "csrc/frame_attention/cuda/frame_first_use.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "csrc/frame_attention/cuda/composed_frame_attention.h"
#include "csrc/trust/difference_of_outputs.h"

namespace frameattn {
namespace {

using at::Tensor;

// Of a row, in whole segments. More than this does not make another kernel run: from far fewer columns on rows do not
// stay in shared memory.
constexpr int64_t kMostColumns = 4096;

class Trial {
 public:
  // Logits are near 1, so that all frames have weight. Outputs are NaN.
  explicit Trial(const FrameProblem& like) : problem(like) {
    problem.scale = like.is_update() ? 1 : 0.5;
    for (const auto member : kFrameInputRows) fill(member, &Trial::random, &Trial::rows);
    for (const auto member : kFrameOutputRows) fill(member, &Trial::nans, &Trial::rows);
    for (const auto member :
         {&FrameProblem::entropy, &FrameProblem::grad_lse, &FrameProblem::row_lse, &FrameProblem::row_offset})
      fill(member, &Trial::random, &Trial::scalars);
    for (const auto member : {&FrameProblem::lse, &FrameProblem::mass, &FrameProblem::grad_entropy})
      fill(member, &Trial::nans, &Trial::scalars);
    problem.key.mul_(1 / (problem.scale * std::sqrt(double(frame_columns(problem.query)))));
    if (like.kernel == FrameKernel::update_backward) find_mass();
    if (problem.row_lse.defined() && !problem.row_offset.defined()) find_row_lse();
  }

  std::vector<Tensor FrameProblem::*> outputs() const {
    std::vector<Tensor FrameProblem::*> members(std::begin(kFrameOutputRows), std::end(kFrameOutputRows));
    members.insert(members.end(), {&FrameProblem::lse, &FrameProblem::grad_entropy});
    if (!problem.is_backward()) members.push_back(&FrameProblem::mass);
    std::erase_if(members, [&](auto member) { return !(problem.*member).defined(); });
    return members;
  }

  FrameProblem problem;

 private:
  using Values = Tensor (Trial::*)(at::IntArrayRef sizes);
  using View = Tensor (Trial::*)(const Tensor& like, Values values);

  void fill(Tensor FrameProblem::* member, Values values, View view) {
    if ((problem.*member).defined()) problem.*member = (this->*view)(problem.*member, values);
  }

  // Memory like that of matrix_attention: [1, 2, T, segments, 3, segment] as [1, 2, 3, T, segments, segment].
  Tensor rows(const Tensor& like, Values values) {
    const int64_t segment = like.size(5), most = std::max<int64_t>(1, kMostColumns / std::max<int64_t>(1, segment));
    return (this->*values)({1, 2, like.size(3), std::min(most, like.size(4)), 3, segment})
        .to(like.options())
        .permute({0, 1, 4, 2, 3, 5});
  }
  Tensor scalars(const Tensor& like, Values values) {
    return (this->*values)({1, 2, like.size(3), 3}).to(like.options()).permute({0, 1, 3, 2});
  }

  Tensor random(at::IntArrayRef sizes) { return at::randn(sizes, generator_); }
  Tensor nans(at::IntArrayRef sizes) { return at::full(sizes, std::numeric_limits<double>::quiet_NaN(), at::kFloat); }

  void find_mass() {
    FrameProblem forward{.op = problem.op, .kernel = FrameKernel::update_forward, .mass_floor = problem.mass_floor};
    forward.query = problem.query;
    forward.key = problem.key;
    forward.entropy = problem.entropy;
    forward.mass = problem.mass;
    forward.out = at::empty_like(problem.query);
    run_composed(forward);
  }

  // Of all rows but those of the first frame, which take no part.
  void find_row_lse() {
    FrameProblem forward{.op = problem.op, .kernel = FrameKernel::attention_forward, .scale = problem.scale};
    forward.query = problem.query;
    forward.key = problem.key;
    forward.entropy = problem.entropy;
    forward.value = problem.value;
    forward.lse = problem.row_lse;
    forward.out = at::empty_like(problem.value);
    run_composed(forward);
    problem.row_lse.select(3, 0).fill_(std::numeric_limits<double>::infinity());
  }

  at::Generator generator_ = at::make_generator<at::CPUGeneratorImpl>(0);
};

}  // namespace

std::string difference_from_composed(const FrameRunner& kernel, const FrameProblem& like) {
  const Trial trial(like);
  FrameProblem expected = trial.problem;
  for (const auto member : trial.outputs()) expected.*member = at::empty_like(expected.*member);
  kernel(trial.problem);
  run_composed(expected);
  for (const auto member : trial.outputs()) {
    const std::string difference =
        difference_of_outputs(trial.problem.*member, expected.*member, like.query.scalar_type());
    if (!difference.empty()) return difference;
  }
  return "";
}

}  // namespace frameattn
