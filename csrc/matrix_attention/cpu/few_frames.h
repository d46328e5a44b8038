// matrix_attention of at most 16 frames on CPUs with AVX-512. A vector holds a number of each frame, so the weights of
// a head are 16 vectors, and its rows are read and written where they lie, without the copies that other sizes take.
// Elements are float, bfloat16 or float16; sums are float. One call computes one head.
#pragma once

#include "csrc/matrix_attention/cpu/head.h"

namespace frameattn {

// Whether they are few enough, this CPU has AVX-512 and torch may use it.
bool takes_few_frames(int64_t frames);

template <typename T>
void few_frames_forward(const Sizes& sizes, const Part<const T>& query, const Part<const T>& key,
                        const Part<const T>& value, const Part<T>& out);

template <typename T>
void few_frames_backward(const Sizes& sizes, const Part<const T>& grad, const Part<const T>& query,
                         const Part<const T>& key, const Part<const T>& value, const Part<T>& grad_query,
                         const Part<T>& grad_key, const Part<T>& grad_value);

}  // namespace frameattn
