#include "csrc/matrix_attention/cpu/weights.h"

#include "csrc/shared/cpu/column_softmax.h"

namespace frameattn {

FRAMEATTN_MULTIVERSION
void softmax_weights(float* weights, int64_t rows, int64_t width, float scale, float* largest, float* total) {
  column_softmax<float>(weights, rows, width, scale, nullptr, 0, largest, total, nullptr);
}

FRAMEATTN_MULTIVERSION
void softmax_weights(double* weights, int64_t rows, int64_t width, double scale, double* largest, double* total) {
  column_softmax<double>(weights, rows, width, scale, nullptr, 0, largest, total, nullptr);
}

FRAMEATTN_MULTIVERSION
void softmax_weights_backward(const float* weights, float* grad, int64_t rows, int64_t width, float scale,
                              float* mean) {
  column_softmax_backward(weights, grad, rows, width, scale, mean);
}

FRAMEATTN_MULTIVERSION
void softmax_weights_backward(const double* weights, double* grad, int64_t rows, int64_t width, double scale,
                              double* mean) {
  column_softmax_backward(weights, grad, rows, width, scale, mean);
}

}  // namespace frameattn
