#include <gtest/gtest.h>

#include "csrc/matrix_attention/matrix_linear.h"

namespace frameattn {

TEST(MatrixLinearOrder, MixesTokensFirstWhenTheyBecomeFewer) {
  EXPECT_TRUE(matrix_linear_left_first({.n = 256, .d = 1152, .m = 128, .e = 1152}));
  EXPECT_FALSE(matrix_linear_left_first({.n = 256, .d = 1152, .m = 512, .e = 1152}));
  EXPECT_TRUE(matrix_linear_left_first({.n = 4, .d = 4, .m = 4, .e = 4}));
}

TEST(MatrixLinearOrder, BackwardWorksOnTheSmallerSide) {
  const auto few_rows = plan_matrix_linear_backward({.n = 256, .d = 1152, .m = 128, .e = 1152}, {true, true, true},
                                                    /*saved=*/false);
  EXPECT_TRUE(few_rows.grad_x_left && few_rows.grad_u_left && few_rows.grad_w_left);
  const auto many_rows = plan_matrix_linear_backward({.n = 256, .d = 1152, .m = 512, .e = 1152}, {true, true, true},
                                                     /*saved=*/false);
  EXPECT_FALSE(many_rows.grad_x_left || many_rows.grad_w_left);
}

}  // namespace frameattn
