// Autograd of matrix_attention. Saves query, key, value; the T x T weights are computed again in backward.
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "csrc/matrix_attention/matrix_attention.h"
#include "csrc/shared/double_backward.h"
#include "csrc/shared/register_operators.h"
#include "frameattn/matrix_attention.h"

namespace frameattn {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct MatrixAttention : torch::autograd::Function<MatrixAttention> {
  static constexpr bool is_traceable = true;  // compiled autograd may look inside

  static Tensor forward(AutogradContext* ctx, const Tensor& query, const Tensor& key, const Tensor& value,
                        int64_t row_heads, int64_t col_heads, std::optional<double> scale) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({query, key, value});
    ctx->saved_data["row_heads"] = row_heads;
    ctx->saved_data["col_heads"] = col_heads;
    ctx->saved_data["scale"] = scale;
    return matrix_attention(query, key, value, row_heads, col_heads, scale);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    variable_list gradients(6);
    if (!grad_outputs[0].defined()) return gradients;
    const auto saved = ctx->get_saved_variables();
    auto [query, key, value] =
        matrix_attention_backward(grad_outputs[0], saved[0], saved[1], saved[2], ctx->saved_data["row_heads"].toInt(),
                                  ctx->saved_data["col_heads"].toInt(), ctx->saved_data["scale"].toOptional<double>());
    if (ctx->needs_input_grad(0)) gradients[0] = query;
    if (ctx->needs_input_grad(1)) gradients[1] = key;
    if (ctx->needs_input_grad(2)) gradients[2] = value;
    return gradients;
  }
};

Tensor matrix_attention_autograd(const Tensor& query, const Tensor& key, const Tensor& value, int64_t row_heads,
                                 int64_t col_heads, std::optional<double> scale) {
  return MatrixAttention::apply(query, key, value, row_heads, col_heads, scale);
}

}  // namespace

FRAMEATTN_LIBRARY_IMPL(Autograd, m) {
  m.impl("matrix_attention", &matrix_attention_autograd);
  m.impl("matrix_attention_backward", &RefuseDoubleBackward<&matrix_attention_backward>::call);
}

}  // namespace frameattn
