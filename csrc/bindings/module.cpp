// The Python module frameattn._C. Importing it registers the operators (torch.ops.frameattn.*, or the namespace that
// the build was given), which is what Python code calls: torch.compile cannot look into the functions below. They are
// the C++ interface as C++ users see it, for eager use and tests.
#include <ATen/core/grad_mode.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "csrc/device/hopper_probe.h"
#include "csrc/frame_attention/cuda/composed_frame_attention.h"
#include "csrc/matrix_attention/cuda/matrix_attention_problem.h"
#include "csrc/matrix_attention/matrix_attention.h"
#include "csrc/matrix_attention/matrix_linear.h"
#include "csrc/monarch_attention/cuda/kernels/flash_forward_sm90.h"
#include "csrc/monarch_attention/cuda/temporal_by_frames.h"
#include "csrc/monarch_attention/temporal_step.h"
#include "csrc/shared/operator_namespace.h"
#include "csrc/trust/kernel_trust.h"
#include "frameattn/frameattn.h"

namespace {

using namespace frameattn;
using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
namespace py = pybind11;

// pybind11 has one table of classes for the process, and another library of these sources may be there already.
constexpr py::module_local of_this_library;

// The implementations made of torch's operators, on any device; `bytes` bounds their temporaries. No autograd.
void bind_composed(py::module_& m) {
  const auto composed = [](int64_t bytes) {
    return [bytes](const FrameProblem& problem) { run_composed(problem, bytes); };
  };
  const py::kw_only options;
  const py::arg_v bytes = py::arg("bytes") = kComposedBytes;
  m.def(
      "composed_matrix_attention",
      [=](const Tensor& query, const Tensor& key, const Tensor& value, int64_t row_heads, int64_t col_heads,
          std::optional<double> scale, int64_t bytes) {
        const at::NoGradGuard no_grad;
        check_matrix_attention_inputs(query, key, value, row_heads, col_heads);
        return matrix_attention_by(composed(bytes), query, key, value, row_heads, col_heads, scale);
      },
      py::arg("query"), py::arg("key"), py::arg("value"), py::arg("row_heads"), py::arg("col_heads"),
      py::arg("scale") = py::none(), options, bytes);
  m.def(
      "composed_matrix_attention_backward",
      [=](const Tensor& grad_output, const Tensor& query, const Tensor& key, const Tensor& value, int64_t row_heads,
          int64_t col_heads, std::optional<double> scale, int64_t bytes) {
        const at::NoGradGuard no_grad;
        check_matrix_attention_backward_inputs(grad_output, query, key, value, row_heads, col_heads);
        return matrix_attention_backward_by(composed(bytes), grad_output, query, key, value, row_heads, col_heads,
                                            scale);
      },
      py::arg("grad_output"), py::arg("query"), py::arg("key"), py::arg("value"), py::arg("row_heads"),
      py::arg("col_heads"), py::arg("scale") = py::none(), options, bytes);
  m.def(
      "composed_temporal_update",
      [=](const Tensor& query, const Tensor& weighted_key, const Tensor& entropy, int64_t frames, double mass_floor,
          int64_t bytes) {
        const at::NoGradGuard no_grad;
        check_temporal_step_inputs("temporal_update", query, weighted_key, entropy, std::nullopt, frames);
        return temporal_update_on(temporal_implementation(composed(bytes)), query, weighted_key, entropy, frames,
                                  mass_floor);
      },
      py::arg("query"), py::arg("weighted_key"), py::arg("entropy"), py::arg("frames"), py::arg("mass_floor"), options,
      bytes);
  m.def(
      "composed_temporal_update_backward",
      [=](const Tensor& grad_surrogate, const Tensor& query, const Tensor& weighted_key, const Tensor& entropy,
          const Tensor& mass, int64_t frames, double mass_floor, int64_t bytes) {
        const at::NoGradGuard no_grad;
        check_temporal_step_inputs("temporal_update_backward", query, weighted_key, entropy, std::nullopt, frames);
        return temporal_update_backward_on(temporal_implementation(composed(bytes)), grad_surrogate, query,
                                           weighted_key, entropy, mass, frames, mass_floor);
      },
      py::arg("grad_surrogate"), py::arg("query"), py::arg("weighted_key"), py::arg("entropy"), py::arg("mass"),
      py::arg("frames"), py::arg("mass_floor"), options, bytes);
  m.def(
      "composed_temporal_output",
      [=](const Tensor& query, const Tensor& weighted_key, const Tensor& entropy, const Tensor& value, int64_t frames,
          int64_t bytes) {
        const at::NoGradGuard no_grad;
        check_temporal_step_inputs("temporal_output", query, weighted_key, entropy, value, frames);
        return temporal_output_on(temporal_implementation(composed(bytes)), query, weighted_key, entropy, value,
                                  frames);
      },
      py::arg("query"), py::arg("weighted_key"), py::arg("entropy"), py::arg("value"), py::arg("frames"), options,
      bytes);
  m.def(
      "composed_temporal_output_backward",
      [=](const OptionalTensor& grad_out, const OptionalTensor& grad_lse, const Tensor& query,
          const Tensor& weighted_key, const Tensor& entropy, const Tensor& value, int64_t frames, int64_t bytes) {
        const at::NoGradGuard no_grad;
        check_temporal_step_inputs("temporal_output_backward", query, weighted_key, entropy, value, frames);
        return temporal_output_backward_on(temporal_implementation(composed(bytes)), grad_out, grad_lse, query,
                                           weighted_key, entropy, value, frames);
      },
      py::arg("grad_out"), py::arg("grad_lse"), py::arg("query"), py::arg("weighted_key"), py::arg("entropy"),
      py::arg("value"), py::arg("frames"), options, bytes);
}

// Which CUDA kernel a problem gets, from sizes and dtypes only (meta tensors will do).
void bind_choices(py::module_& m) {
  py::class_<FrameKernelChoice>(m, "FrameKernelChoice", of_this_library)
      .def_property_readonly("kernel",
                             [](const FrameKernelChoice& c) { return c.kernel ? frame_kernel_name(*c.kernel) : ""; })
      .def_readonly("by_blocks", &FrameKernelChoice::by_blocks)
      .def_readonly("reason", &FrameKernelChoice::reason)
      .def_property_readonly("resident", [](const FrameKernelChoice& c) { return c.plan.resident; })
      .def_property_readonly("threads", [](const FrameKernelChoice& c) { return c.plan.threads; })
      .def_property_readonly("items", [](const FrameKernelChoice& c) { return c.plan.items; })
      .def_property_readonly("shared_bytes",
                             [](const FrameKernelChoice& c) { return c.plan.items * c.plan.item_bytes; });
  m.def("choose_matrix_attention_kernel", &choose_matrix_attention_kernel, py::arg("query"), py::arg("value"),
        py::arg("row_heads"), py::arg("col_heads"), py::kw_only(), py::arg("backward"), py::arg("capability"));
  py::class_<FlashTileSm90>(m, "FlashTileSm90", of_this_library)
      .def_readonly("width", &FlashTileSm90::width)
      .def_readonly("keys", &FlashTileSm90::keys)
      .def_readonly("values", &FlashTileSm90::values)
      .def_readonly("key_rows", &FlashTileSm90::key_rows)
      .def_property_readonly("rows", &FlashTileSm90::rows);
  py::class_<FlashCostSm90>(m, "FlashCostSm90", of_this_library)
      .def_readonly("tile", &FlashCostSm90::tile)
      .def_readonly("step", &FlashCostSm90::step)
      .def_readonly("short_last", &FlashCostSm90::short_last);
  py::class_<FlashPlanSm90>(m, "FlashPlanSm90", of_this_library)
      .def_readonly("tile", &FlashPlanSm90::tile)
      .def_readonly("key_parts", &FlashPlanSm90::key_parts)
      .def_readonly("microseconds", &FlashPlanSm90::microseconds);
  m.def("flash_tiles_sm90", [] { return std::vector(std::begin(kFlashTilesSm90), std::end(kFlashTilesSm90)); });
  m.def("flash_costs_sm90", [] { return std::vector(std::begin(kFlashCostsSm90), std::end(kFlashCostsSm90)); });
  m.def(
      "plan_flash_sm90",
      [](int width, bool keys, bool values, int64_t parts, int64_t queries, int64_t part_keys, bool may_split,
         int64_t multiprocessors) {
        return plan_flash_sm90(width, keys, values, {parts, queries, part_keys, may_split, multiprocessors});
      },
      py::arg("width"), py::arg("keys"), py::arg("values"), py::kw_only(), py::arg("parts"), py::arg("queries"),
      py::arg("part_keys"), py::arg("may_split"), py::arg("multiprocessors"));
  m.def("choose_temporal_step_kernel", &choose_temporal_step_kernel, py::arg("query"), py::arg("value"),
        py::arg("frames"), py::kw_only(), py::arg("backward"), py::arg("capability"));
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.attr("OPERATOR_NAMESPACE") = py::str(kOperatorNamespace);
  m.def("matrix_linear", &matrix_linear, py::arg("x"), py::arg("u"), py::arg("w"), py::arg("bias") = py::none());
  m.def("matrix_attention", &matrix_attention, py::arg("query"), py::arg("key"), py::arg("value"), py::arg("row_heads"),
        py::arg("col_heads"), py::arg("scale") = py::none());

  m.def(
      "vmonarch_attention",
      [](const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, int64_t frames, int64_t iterations,
         bool dense_first_frame, double mass_floor, std::optional<double> scale, bool entropy_gradient,
         const std::optional<at::Tensor>& extra_key, const std::optional<at::Tensor>& extra_value,
         const std::optional<at::Tensor>& extra_mask, bool return_lse, std::optional<int64_t> workspace_bytes) {
        const VMonarchOptions options{iterations,       dense_first_frame, mass_floor,     scale,
                                      entropy_gradient, return_lse,        workspace_bytes};
        return vmonarch_attention(query, key, value, frames, options, extra_key, extra_value, extra_mask);
      },
      py::arg("query"), py::arg("key"), py::arg("value"), py::arg("frames"), py::kw_only(), py::arg("iterations") = 2,
      py::arg("dense_first_frame") = true, py::arg("mass_floor") = 0.1, py::arg("scale") = py::none(),
      py::arg("entropy_gradient") = true, py::arg("extra_key") = py::none(), py::arg("extra_value") = py::none(),
      py::arg("extra_mask") = py::none(), py::arg("return_lse") = false, py::arg("workspace_bytes") = py::none());

  m.def("build_info", &build_info, "(name, value) pairs: what the library was built with");
  m.def("cuda_devices", &cuda_devices, "one line for each NVIDIA GPU the library sees");
  m.def("current_device_loads_sm90a", &current_device_loads_sm90a, "None if the build has no kernels for sm_90a alone");
  m.def("kernel_choice", &kernel_choice, "what FRAMEATTN_KERNELS says: checked, composed or unchecked");
  m.def("only_portable_kernels", &only_portable_kernels, "whether FRAMEATTN_KERNELS says portable");
  m.def(
      "trusted_kernels",
      [](int capability) {
        std::map<std::string, std::vector<std::string>> dtypes;
        for (const TrustedKernel& kernel : KernelTrust::global().table())
          if (kernel.capability == capability) dtypes[kernel.name].push_back(kernel.dtype);
        return dtypes;
      },
      py::arg("capability"), "CUDA kernel -> dtypes in which it passed its checks on GPUs of a compute capability");

  // Pure functions that choose how an operator runs, for tests and for counting operations.
  m.def(
      "matrix_linear_left_first",
      [](int64_t n, int64_t d, int64_t m, int64_t e) { return matrix_linear_left_first({n, d, m, e}); }, py::arg("n"),
      py::arg("d"), py::arg("m"), py::arg("e"));
  m.def(
      "matrix_linear_cost", [](int64_t n, int64_t d, int64_t m, int64_t e) { return matrix_linear_cost({n, d, m, e}); },
      py::arg("n"), py::arg("d"), py::arg("m"), py::arg("e"));
  py::class_<MatrixLinearBackwardPlan>(m, "MatrixLinearBackwardPlan", of_this_library)
      .def_readonly("grad_x_left", &MatrixLinearBackwardPlan::grad_x_left)
      .def_readonly("grad_u_left", &MatrixLinearBackwardPlan::grad_u_left)
      .def_readonly("grad_w_left", &MatrixLinearBackwardPlan::grad_w_left)
      .def_readonly("cost", &MatrixLinearBackwardPlan::cost);
  m.def(
      "plan_matrix_linear_backward",
      [](int64_t n, int64_t d, int64_t m, int64_t e, std::array<bool, 3> wanted, bool saved) {
        return plan_matrix_linear_backward({n, d, m, e}, wanted, saved);
      },
      py::arg("n"), py::arg("d"), py::arg("m"), py::arg("e"), py::arg("wanted"), py::arg("saved"));

  bind_choices(m);
  bind_composed(m);
}
