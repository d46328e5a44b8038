// The softmax over all keys is known by its log-sums (lse), which the blocks of a row join one after the other. What
// backward has to know of a whole row is one number more, the offset sum_k L dP = grad_out.out.
//
// The update form is attention twice. Over the queries the weights of a key frame, divided by their sum, are a softmax
// themselves, with the log-sums of the rows as entropies:
//   z[l,k] = scale query[l].key[k] - lse[l],   mass[k] = exp(log sum_l exp(z) - entropy[k]),
//   out[k] = share[k] sum_l softmax over l of z query[l],   share[k] = mass[k] / max(mass[k], mass_floor)
// So keys and queries change places, and its gradient goes back through both softmaxes.
#include "csrc/frame_attention/cuda/frame_blocks.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <algorithm>
#include <initializer_list>

#include "csrc/shared/infinity.h"

namespace frameattn {
namespace {

using at::Tensor;
using Member = Tensor FrameProblem::*;

Tensor zeros(const Tensor& like) { return at::zeros(like.sizes(), like.options().dtype(at::kFloat)); }

// sum over the columns of a b; a is overwritten.
Tensor inner_products(Tensor& a, const Tensor& b) { return a.mul_(b).sum({4, 5}); }

void copy_if_defined(const Tensor& to, const Tensor& from) {
  if (to.defined()) to.copy_(from);
}

class Blocks {
 public:
  Blocks(const FrameProblem& problem, const FrameRunner& launch, int64_t most)
      : p(problem), launch_(launch), most_(most) {}

  void attention_forward() const {
    const auto [out, lse] = attend(p);
    p.out.copy_(out);
    copy_if_defined(p.lse, lse);
  }

  void attention_backward() const {
    FrameProblem backward = p;
    if (!p.row_offset.defined()) {
      auto [out, lse] = attend(p);
      if (!p.row_lse.defined()) backward.row_lse = lse;
      backward.row_offset = inner_products(out, p.grad_out);
      if (p.grad_lse.defined()) backward.row_offset.sub_(p.grad_lse);
    }
    constexpr Member gradients[] = {&FrameProblem::grad_query, &FrameProblem::grad_key, &FrameProblem::grad_value,
                                    &FrameProblem::grad_entropy};
    for (const Member gradient : gradients)
      if ((p.*gradient).defined()) backward.*gradient = zeros(p.*gradient);
    run(backward);
    for (const Member gradient : gradients) copy_if_defined(p.*gradient, backward.*gradient);
  }

  void update_forward() const {
    auto [means, log_sum] = attend(exchanged(log_sums()));
    const Tensor mass = (p.entropy.defined() ? log_sum.sub_(p.entropy) : log_sum).exp_();
    p.out.copy_(means.mul_(share(mass).unsqueeze(-1).unsqueeze(-1)));
    copy_if_defined(p.mass, mass);
  }

  void update_backward() const {
    const Tensor lse = log_sums(), grad_lse = zeros(lse);
    const Tensor grad_query = zeros(p.grad_query), grad_key = zeros(p.grad_key), grad_entropy = zeros(p.mass);

    // Through the softmax over the queries. Its weights times share[k] are L / max(mass, mass_floor): a log-sum says
    // so. A mass at its floor is a constant, and then it is entropy[k] that the sum of the weights depends on.
    FrameProblem means = exchanged(lse);
    Tensor out = attend(means).out;
    const Tensor moved = inner_products(out, p.grad_out), is_free = p.mass > p.mass_floor;
    means.kernel = FrameKernel::attention_backward;
    means.row_lse = p.mass.clamp_min(p.mass_floor).log_();
    if (p.entropy.defined()) means.row_lse.add_(p.entropy);
    means.row_offset = at::where(is_free, moved, 0);
    means.grad_out = p.grad_out;
    means.grad_query = grad_key;
    means.grad_key = means.grad_value = grad_query;  // every element of both is added by the same thread
    means.grad_entropy = grad_lse;
    run(means);
    grad_entropy.sub_(at::where(is_free, 0, moved * share(p.mass)));

    // Through the log-sums over the keys: g = L grad_lse[l].
    FrameProblem sums = scores(FrameKernel::attention_backward);
    sums.row_lse = lse;
    sums.row_offset = grad_lse.neg();
    sums.grad_query = grad_query;
    sums.grad_key = grad_key;
    sums.grad_entropy = grad_entropy;
    run(sums);

    p.grad_query.copy_(grad_query);
    p.grad_key.copy_(grad_key);
    copy_if_defined(p.grad_entropy, grad_entropy);
  }

 private:
  struct Attended {
    Tensor out, lse;  // float32
  };

  // All queries against all keys. Without a value there are log-sums only.
  Attended attend(FrameProblem problem) const {
    problem.kernel = FrameKernel::attention_forward;
    if (problem.value.defined()) problem.out = zeros(problem.value);
    problem.lse =
        at::full(problem.query.sizes().slice(0, kFrameDim + 1), -kInfinity, problem.query.options().dtype(at::kFloat));
    run(problem);
    return {problem.out, problem.lse};
  }

  // Of the update form: its scores, their log-sums, and the attention of its key frames to the query frames.
  FrameProblem scores(FrameKernel kernel) const {
    FrameProblem problem{.op = p.op, .kernel = kernel, .scale = p.scale, .query = p.query, .key = p.key};
    problem.entropy = p.entropy;
    return problem;
  }
  Tensor log_sums() const { return attend(scores(FrameKernel::attention_forward)).lse; }
  FrameProblem exchanged(const Tensor& lse) const {
    FrameProblem problem{.op = p.op, .scale = p.scale, .query = p.key, .key = p.query, .value = p.query};
    problem.entropy = lse.masked_fill(lse == -kInfinity, kInfinity);  // a query without any weights
    return problem;
  }
  Tensor share(const Tensor& mass) const { return mass / mass.clamp_min(p.mass_floor); }

  // Launches every block of a problem, whose results add up.
  void run(FrameProblem whole) const {
    whole.accumulate = true;
    const int64_t queries = whole.query.size(kFrameDim), keys = whole.key.size(kFrameDim);
    for (int64_t l = 0; l < queries; l += most_)
      for (int64_t k = 0; k < keys; k += most_) {
        FrameProblem block = whole;
        narrow(block, l, std::min(most_, queries - l),
               {&FrameProblem::query, &FrameProblem::out, &FrameProblem::lse, &FrameProblem::grad_out,
                &FrameProblem::grad_query, &FrameProblem::row_lse, &FrameProblem::row_offset});
        narrow(block, k, std::min(most_, keys - k),
               {&FrameProblem::key, &FrameProblem::value, &FrameProblem::entropy, &FrameProblem::grad_key,
                &FrameProblem::grad_value, &FrameProblem::grad_entropy});
        launch_(block);
      }
  }
  static void narrow(FrameProblem& block, int64_t first, int64_t count, std::initializer_list<Member> members) {
    for (const Member member : members)
      if ((block.*member).defined()) block.*member = (block.*member).narrow(kFrameDim, first, count);
  }

  const FrameProblem& p;
  const FrameRunner& launch_;
  const int64_t most_;
};

}  // namespace

void run_frame_blocks(const FrameProblem& problem, const FrameRunner& launch, int64_t most) {
  const Blocks blocks(problem, launch, most);
  switch (problem.kernel) {
    case FrameKernel::attention_forward:
      return blocks.attention_forward();
    case FrameKernel::attention_backward:
      return blocks.attention_backward();
    case FrameKernel::update_forward:
      return blocks.update_forward();
    case FrameKernel::update_backward:
      return blocks.update_backward();
  }
}

}  // namespace frameattn
