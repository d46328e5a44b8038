#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>

TEST(ByName, OperatorsAreRegisteredWithoutNamingASymbolOfTheLibrary) {
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const char* name :
       {"matrix_linear", "matrix_linear_forward", "matrix_linear_backward", "matrix_attention",
        "matrix_attention_backward", "vmonarch_attention", "spatial_step", "temporal_update", "temporal_output"})
    EXPECT_TRUE(dispatcher.findSchema({std::string("frameattn::") + name, ""}).has_value()) << name;

  const auto op = dispatcher.findSchemaOrThrow("frameattn::matrix_linear", "")
                      .typed<at::Tensor(const at::Tensor&, const std::optional<at::Tensor>&, const at::Tensor&,
                                        const std::optional<at::Tensor>&)>();
  const auto x = at::randn({3, 4, 5}), u = at::randn({4, 2}), w = at::randn({5, 6});
  EXPECT_TRUE(at::allclose(op.call(x, u, w, std::nullopt), u.t().matmul(x).matmul(w), 1e-4, 1e-5));
  EXPECT_TRUE(at::allclose(op.call(x, std::nullopt, w, std::nullopt), x.matmul(w), 1e-4, 1e-5));
}
