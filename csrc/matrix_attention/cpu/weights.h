// The elementwise part of matrix_attention, on weights [key frame, column]; a column is one query frame of one head.
#pragma once

#include <cstdint>

namespace frameattn {

// weights = softmax down the columns of scale * weights. largest, total: scratch [width].
void softmax_weights(float* weights, int64_t rows, int64_t width, float scale, float* largest, float* total);
void softmax_weights(double* weights, int64_t rows, int64_t width, double scale, double* largest, double* total);

// grad = scale weights (grad - sum of the column of weights grad). mean: scratch [width].
void softmax_weights_backward(const float* weights, float* grad, int64_t rows, int64_t width, float scale, float* mean);
void softmax_weights_backward(const double* weights, double* grad, int64_t rows, int64_t width, double scale,
                              double* mean);

}  // namespace frameattn
