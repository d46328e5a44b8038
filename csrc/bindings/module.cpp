// The Python module frameattn._C. Importing it registers the operators (torch.ops.frameattn.*), which is what Python
// code calls: torch.compile cannot look into the functions below. They are the C++ interface as C++ users see it, for
// eager use and tests.
#include <torch/extension.h>

#include "csrc/matrix_attention/matrix_linear.h"
#include "frameattn/frameattn.h"

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace frameattn;
  namespace py = pybind11;

  m.def("matrix_linear", &matrix_linear, py::arg("x"), py::arg("u"), py::arg("w"), py::arg("bias") = py::none());
  m.def("matrix_attention", &matrix_attention, py::arg("query"), py::arg("key"), py::arg("value"), py::arg("row_heads"),
        py::arg("col_heads"), py::arg("scale") = py::none());

  m.def(
      "vmonarch_attention",
      [](const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, int64_t frames, int64_t steps,
         bool dense_first_frame, double mass_floor, std::optional<double> scale, bool entropy_gradient,
         const std::optional<at::Tensor>& extra_key, const std::optional<at::Tensor>& extra_value,
         const std::optional<at::Tensor>& extra_mask, bool return_lse) {
        const VMonarchOptions options{steps, dense_first_frame, mass_floor, scale, entropy_gradient, return_lse};
        return vmonarch_attention(query, key, value, frames, options, extra_key, extra_value, extra_mask);
      },
      py::arg("query"), py::arg("key"), py::arg("value"), py::arg("frames"), py::kw_only(), py::arg("steps") = 2,
      py::arg("dense_first_frame") = true, py::arg("mass_floor") = 0.1, py::arg("scale") = py::none(),
      py::arg("entropy_gradient") = true, py::arg("extra_key") = py::none(), py::arg("extra_value") = py::none(),
      py::arg("extra_mask") = py::none(), py::arg("return_lse") = false);

  m.def("build_info", &build_info, "(name, value) pairs: what the library was built with");
  m.def("cuda_devices", &cuda_devices, "one line for each NVIDIA GPU the library sees");

  // Pure functions that choose how an operator runs, for tests and for counting operations.
  m.def(
      "matrix_linear_left_first",
      [](int64_t n, int64_t d, int64_t m, int64_t e) { return matrix_linear_left_first({n, d, m, e}); }, py::arg("n"),
      py::arg("d"), py::arg("m"), py::arg("e"));
  m.def(
      "matrix_linear_cost", [](int64_t n, int64_t d, int64_t m, int64_t e) { return matrix_linear_cost({n, d, m, e}); },
      py::arg("n"), py::arg("d"), py::arg("m"), py::arg("e"));
  py::class_<MatrixLinearBackwardPlan>(m, "MatrixLinearBackwardPlan")
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
}
