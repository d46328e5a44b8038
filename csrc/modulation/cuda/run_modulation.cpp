#include "csrc/modulation/cuda/run_modulation.h"

#include <ATen/Functions.h>
#include <c10/core/DeviceGuard.h>

#include "csrc/modulation/cuda/composed_modulation.h"
#include "csrc/modulation/cuda/modulation_first_use.h"
#include "csrc/shared/unit_stride.h"
#include "csrc/shared/warn_once.h"
#include "csrc/trust/kernel_trust.h"

namespace frameattn {
namespace {

using at::Tensor;

const char* element_name(RowElement element) {
  const char* names[] = {"bfloat16", "float16", "float32"};
  return names[static_cast<int>(element)];
}

// Rows of which a kernel reads pieces of `piece` elements at once.
bool are_aligned(const Tensor& rows, int piece) {
  if (!rows.defined()) return true;
  if (rows.size(3) % piece != 0) return false;
  if (reinterpret_cast<uintptr_t>(rows.const_data_ptr()) % (piece * rows.element_size()) != 0) return false;
  for (int dim = 0; dim < 3; ++dim)
    if (rows.size(dim) > 1 && rows.stride(dim) % piece != 0) return false;
  return true;
}

bool are_aligned(const ModulationKernelId& id, const ModulationProblem& problem) {
  const int piece = piece_columns(id.first, id.second);
  return are_aligned(problem.first, piece) && are_aligned(problem.second, piece);
}

ModulationRows rows_of(const Tensor& rows) {
  if (!rows.defined()) return {};
  const int64_t bytes = rows.element_size();
  return {rows.const_data_ptr(), rows.stride(0) * bytes, rows.stride(1) * bytes, rows.stride(2) * bytes,
          (rows.stride(1) - rows.size(2) * rows.stride(2)) * bytes};
}

ModulationVectors vectors_of(const Tensor& vectors) {
  if (!vectors.defined()) return {};
  const bool of_frames = vectors.dim() == 3 && vectors.size(1) != 1;
  return {vectors.const_data_ptr(), vectors.stride(0), of_frames ? vectors.stride(1) : 0, vectors.stride(-1),
          row_element(vectors.scalar_type())};
}

Tensor copied_if_apart(const ModulationProblem& problem, const Tensor& rows) {
  if (!rows.defined() || rows.stride(3) == 1 || rows.size(3) == 1) return rows;
  if (is_verbose())
    warn_once(c10::str("frameattn: ", problem.op, " copies rows whose columns do not lie together in memory"));
  return unit_stride(rows);
}

// As a kernel reads it: a copy of rows whose columns lie apart.
ModulationProblem with_readable_rows(const ModulationProblem& given) {
  ModulationProblem problem = given;
  problem.first = copied_if_apart(given, given.first);
  problem.second = copied_if_apart(given, given.second);
  return problem;
}

// Results with memory for a problem.
ModulationResults empty_results(const ModulationProblem& problem) {
  const Tensor& x = problem.first;
  ModulationResults results;
  results.out = at::empty(x.sizes(), x.options().dtype(problem.out_dtype()));
  if (problem.kernel == ModulationKernel::norm_forward) {
    results.mean = at::empty(x.sizes().slice(0, 3), x.options().dtype(dtype_of_sums(x)));
    results.rstd = at::empty_like(results.mean);
  }
  if (problem.is_backward()) results.grad_scale = at::empty(problem.scale.sizes(), problem.scale.options());
  if (problem.kernel == ModulationKernel::norm_backward)
    results.grad_shift = at::empty(problem.scale.sizes(), problem.scale.options());
  return results;
}

template <typename T>
T* pointer(const Tensor& t) {
  return t.defined() ? static_cast<T*>(const_cast<void*>(t.const_data_ptr())) : nullptr;
}

// What decides which code runs. Made at every call: no streams.
std::string modulation_shape(const ModulationKernelId& id, const ModulationProblem& problem) {
  return std::to_string(problem.first.size(3)) + " columns of " + element_name(id.first) + " and " +
         element_name(id.second) + ", modulation in " + element_name(row_element(problem.scale.scalar_type())) +
         (are_aligned(id, problem) ? "" : ", not in pieces of 16 bytes");
}

// The dtype that a record of checks speaks of: the first of these that occurs.
const char* dtype_of(const ModulationKernelId& id, const ModulationProblem& problem) {
  const RowElement modulation = row_element(problem.scale.scalar_type());
  for (const RowElement element : {RowElement::bfloat16, RowElement::float16})
    if (id.first == element || id.second == element || modulation == element) return element_name(element);
  return element_name(RowElement::float32);
}

}  // namespace

ModulationResults launch_modulation(const LaunchContext& context, const ModulationKernelId& id,
                                    const ModulationProblem& problem) {
  const bool reads_statistics = problem.kernel == ModulationKernel::norm_backward;
  const Tensor mean = reads_statistics ? problem.mean.contiguous() : Tensor();
  const Tensor rstd = reads_statistics ? problem.rstd.contiguous() : Tensor();
  ModulationResults results = empty_results(problem);

  ModulationParams params;
  params.clips = problem.first.size(0);
  params.frames = static_cast<int32_t>(problem.first.size(1));
  params.rows = static_cast<int32_t>(problem.first.size(2));
  params.columns = static_cast<int32_t>(problem.first.size(3));
  params.of_frames = problem.of_frames();
  params.eps = static_cast<float>(problem.eps);
  params.first = rows_of(problem.first);
  params.second = rows_of(problem.second);
  params.scale = vectors_of(problem.scale);
  params.shift = vectors_of(problem.shift);
  params.out = pointer<void>(results.out);
  params.mean = pointer<float>(reads_statistics ? mean : results.mean);
  params.rstd = pointer<float>(reads_statistics ? rstd : results.rstd);
  params.grad_scale = pointer<void>(results.grad_scale);
  params.grad_shift = pointer<void>(results.grad_shift);
  const ModulationPlan plan = plan_modulation_kernel(id, params, are_aligned(id, problem), context.multiprocessors);
  Tensor workspace;
  if (plan.workspace_elements > 0)
    workspace = at::empty({plan.workspace_elements}, problem.first.options().dtype(at::kFloat));
  params.workspace = pointer<float>(workspace);
  const int error = context.launch_modulation(id, params, plan, context.stream);
  TORCH_CHECK(error == 0, problem.op, ": kernel ", modulation_kernel_name(id),
              " could not be launched: ", context.describe_error(error), "; x: ", problem.first.sizes());
  return results;
}

ModulationResults run_modulation(const LaunchContext& context, const ModulationProblem& given) {
  const ModulationProblem problem = with_readable_rows(given);
  if (problem.first.numel() == 0) {  // sums over nothing
    const ModulationResults results = empty_results(problem);
    for (const Tensor& t : {results.mean, results.rstd, results.grad_scale, results.grad_shift})
      if (t.defined()) t.zero_();
    return results;
  }
  const ModulationKernelChoice choice = choose_modulation_kernel(problem, context.capability);
  if (!choice.reason.empty()) warn_once("frameattn: " + choice.reason);
  if (choice.kernel) {
    const KernelUse use{.name = modulation_kernel_name(*choice.kernel),
                        .version = kModulationKernelVersion,
                        .capability = context.capability,
                        .dtype = dtype_of(*choice.kernel, problem),
                        .shape = modulation_shape(*choice.kernel, problem),
                        .device = context.device};
    // A whole GPU would have blocks for so few rows that none goes on to other rows, as those of a video do.
    LaunchContext small = context;
    small.multiprocessors = 1;
    const auto launch = [&](const ModulationProblem& trial) { return launch_modulation(small, *choice.kernel, trial); };
    const auto check = [&] { return difference_from_composed(launch, problem, are_aligned(*choice.kernel, problem)); };
    if (context.trust->allows(use, context.capturing, check))
      return launch_modulation(context, *choice.kernel, problem);
  }
  return composed_modulation(problem);
}

std::tuple<Tensor, Tensor, Tensor> modulated_layer_norm_on(const LaunchContext& context, const Tensor& x,
                                                           const Tensor& shift, const Tensor& scale, double eps,
                                                           std::optional<at::ScalarType> dtype) {
  check_modulated_layer_norm_inputs(x, shift, scale, dtype);
  const c10::DeviceGuard guard(x.device());
  const auto results = run_modulation(context, {.op = "modulated_layer_norm",
                                                .kernel = ModulationKernel::norm_forward,
                                                .first = x,
                                                .scale = scale,
                                                .shift = shift,
                                                .eps = eps,
                                                .dtype = dtype});
  return {results.out, results.mean, results.rstd};
}

std::tuple<Tensor, Tensor, Tensor> modulated_layer_norm_backward_on(const LaunchContext& context,
                                                                    const Tensor& grad_out, const Tensor& x,
                                                                    const Tensor& scale, const Tensor& mean,
                                                                    const Tensor& rstd) {
  check_modulated_layer_norm_backward_inputs(grad_out, x, scale, mean, rstd);
  const c10::DeviceGuard guard(x.device());
  const auto results = run_modulation(context, {.op = "modulated_layer_norm_backward",
                                                .kernel = ModulationKernel::norm_backward,
                                                .first = x,
                                                .second = grad_out,
                                                .scale = scale,
                                                .mean = mean,
                                                .rstd = rstd});
  return {results.out, results.grad_shift, results.grad_scale};
}

Tensor gated_add_on(const LaunchContext& context, const Tensor& x, const Tensor& gate, const Tensor& y) {
  check_gated_add_inputs(x, gate, y);
  const c10::DeviceGuard guard(x.device());
  return run_modulation(
             context,
             {.op = "gated_add", .kernel = ModulationKernel::gate_forward, .first = x, .second = y, .scale = gate})
      .out;
}

std::tuple<Tensor, Tensor> gated_add_backward_on(const LaunchContext& context, const Tensor& grad_out,
                                                 const Tensor& gate, const Tensor& y) {
  check_gated_add_backward_inputs(grad_out, gate, y);
  const c10::DeviceGuard guard(y.device());
  const auto results = run_modulation(context, {.op = "gated_add_backward",
                                                .kernel = ModulationKernel::gate_backward,
                                                .first = y,
                                                .second = grad_out,
                                                .scale = gate});
  return {results.grad_scale, results.out};
}

}  // namespace frameattn
