#include "tools/emulator/modulation_cases.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <stdexcept>

#include "tools/emulator/device.h"

namespace frameattn {
namespace {

const char* name_of(RowElement element) {
  const char* names[] = {"bfloat16", "float16", "float32"};
  return names[static_cast<int>(element)];
}
FrameElement narrow(RowElement element) {
  return element == RowElement::float16 ? FrameElement::float16 : FrameElement::bfloat16;
}

// ---- Tensors --------------------------------------------------------------------------------------------------------

// Doubles, and the same as elements in the device's memory, at `place(index)` of it.
class Tensor {
 public:
  Tensor(RowElement element, int64_t count, int64_t room, std::function<int64_t(int64_t)> place)
      : values(count), magnitudes(count), element_(element), place_(std::move(place)) {
    memory_.assign(room * element_bytes(element), 0xff);  // NaN in every element
    data_ = device::allocate(memory_.size());
    device::upload(data_, memory_.data(), memory_.size());
  }
  ~Tensor() { device::release(data_); }
  Tensor(const Tensor&) = delete;

  template <typename Draw>
  void fill(Draw draw) {
    for (size_t i = 0; i < values.size(); ++i) {
      const auto value = static_cast<float>(draw(static_cast<int64_t>(i)));
      uint8_t* const at = &memory_[place_(i) * element_bytes(element_)];
      if (element_ == RowElement::float32) {
        std::memcpy(at, &value, 4);
        values[i] = value;
      } else {
        const uint16_t bits = to_bits(narrow(element_), value);
        std::memcpy(at, &bits, 2);
        values[i] = from_bits(narrow(element_), bits);
      }
    }
    device::upload(data_, memory_.data(), memory_.size());
  }
  void expect(int64_t i, double value, double magnitude) {
    const bool overflows = element_ == RowElement::float16 && std::abs(value) >= 65520;
    values[i] = overflows ? std::copysign(std::numeric_limits<double>::infinity(), value) : value;
    magnitudes[i] = magnitude;
  }
  std::vector<float> read() {
    device::download(memory_.data(), data_, memory_.size());
    std::vector<float> out(values.size());
    for (size_t i = 0; i < values.size(); ++i) {
      const uint8_t* const at = &memory_[place_(i) * element_bytes(element_)];
      uint16_t bits;
      if (element_ == RowElement::float32)
        std::memcpy(&out[i], at, 4);
      else
        std::memcpy(&bits, at, 2), out[i] = from_bits(narrow(element_), bits);
    }
    return out;
  }
  // Results are rounded once; what they are sums of, in float32.
  bool agrees(const char* name, FrameOutcome& outcome) {
    const double terms = element_ == RowElement::float32 ? 0 : element_ == RowElement::float16 ? 0x1p-11 : 0x1p-8;
    for (size_t i = 0; i < values.size(); ++i)
      magnitudes[i] = terms * (std::isinf(values[i]) ? 0 : std::abs(values[i])) + 0x1p-20 * magnitudes[i];
    const double smallest = element_ == RowElement::float16 ? 0x1p-25 : 0;
    return compare(name, read(), values, magnitudes, {1e-7, 1e-7, 1, smallest}, outcome);
  }

  uint8_t* data() const { return static_cast<uint8_t*>(data_); }

  std::vector<double> values, magnitudes;  // sums, and the sums of the absolute values of their terms

 private:
  RowElement element_;
  std::function<int64_t(int64_t)> place_;
  std::vector<uint8_t> memory_;
  void* data_;
};

Tensor contiguous(RowElement element, int64_t count) {
  return Tensor(element, count, count, [](int64_t i) { return i; });
}

struct Rows {
  Rows(const ModulationCase& c, RowElement element)
      : gap(c.layout == ModulationLayout::view ? 8 : 0),
        begin(c.layout == ModulationLayout::misaligned ? 1 : 0),
        strides{c.rows * (c.columns + gap), c.rows * (c.columns + gap), c.columns + gap},
        tensor(element, c.clips * c.frames * c.rows * c.columns,
               begin + c.clips * c.frames * c.rows * int64_t{c.columns + gap}, [this, c](int64_t i) {
                 const int64_t row = i / c.columns;
                 return begin + row / c.rows / c.frames * strides[0] + row / c.rows % c.frames * strides[1] +
                        row % c.rows * strides[2] + i % c.columns;
               }) {
    (c.layout == ModulationLayout::view ? strides[1] : strides[0]) *=
        c.layout == ModulationLayout::view ? c.clips : c.frames;
    const int64_t bytes = element_bytes(element);
    as_params = {tensor.data() + begin * bytes, strides[0] * bytes, strides[1] * bytes, strides[2] * bytes,
                 (strides[1] - c.rows * strides[2]) * bytes};
  }

  int64_t gap, begin, strides[3];
  Tensor tensor;
  ModulationRows as_params;
};

// [clips, frames or 1, columns], a part of what is three times as wide.
struct Vectors {
  Vectors(const ModulationCase& c, int64_t groups)
      : step(c.layout == ModulationLayout::view ? 2 : 1),
        tensor(c.modulation, groups * c.columns, groups * 3 * c.columns,
               [this, c](int64_t i) { return i / c.columns * 3 * c.columns + begin(c) + i % c.columns * step; }) {
    const int64_t of_clip = (c.of_frames ? c.frames : 1) * 3 * int64_t{c.columns};
    as_params = {tensor.data() + begin(c) * element_bytes(c.modulation), of_clip, 3 * int64_t{c.columns}, step,
                 c.modulation};
  }

  // So that the last column is the last element of all.
  int64_t begin(const ModulationCase& c) const { return 3 * c.columns - 1 - step * (c.columns - 1); }

  int64_t step;
  Tensor tensor;
  ModulationVectors as_params;
};

// ---- A problem ------------------------------------------------------------------------------------------------------

struct Problem {
  explicit Problem(const ModulationCase& given)
      : c(given),
        all_rows(c.clips * c.frames * c.rows),
        groups(c.of_frames ? c.clips * c.frames : c.clips),
        is_norm(c.id.kernel == ModulationKernel::norm_forward || c.id.kernel == ModulationKernel::norm_backward),
        is_backward(c.id.kernel == ModulationKernel::norm_backward || c.id.kernel == ModulationKernel::gate_backward),
        first(c, c.id.first),
        second(c, c.id.second),
        scale(c, groups),
        shift(c, groups),
        out(contiguous(c.id.kernel == ModulationKernel::norm_forward ? c.id.second : c.id.first, all_rows * c.columns)),
        mean(contiguous(RowElement::float32, all_rows)),
        rstd(contiguous(RowElement::float32, all_rows)),
        grad_scale(contiguous(c.modulation, groups * c.columns)),
        grad_shift(contiguous(c.modulation, groups * c.columns)) {}

  void draw() {
    Normal normal(30);
    const bool is_large = c.data == ModulationData::large;
    const double far = c.id.first == RowElement::bfloat16 ? 30 : 1000;
    first.tensor.fill([&](int64_t i) {
      const int64_t row = i / c.columns;
      switch (c.data) {
        case ModulationData::far:
          return normal() + far;
        case ModulationData::constant:
          return 3.1 * static_cast<double>(row + 1);
        case ModulationData::large:
          return 300 * normal();
        default:
          return normal();
      }
    });
    second.tensor.fill([&](auto) { return is_large ? 2000 * normal() : normal(); });
    scale.tensor.fill([&](auto) { return normal(); });
    shift.tensor.fill([&](auto) { return normal(); });
  }

  int64_t group_of(int64_t row) const { return row / c.rows / (c.of_frames ? 1 : c.frames); }

  void solve_norm() {
    const bool gives_statistics = c.id.kernel == ModulationKernel::norm_forward;
    std::vector<double> statistics[2];
    std::vector<double> sums[2], terms[2];
    for (auto* both : {&sums, &terms})
      for (auto& one : *both) one.assign(groups * c.columns, 0);
    for (int64_t row = 0; row < all_rows; ++row) {
      const double* const x = &first.tensor.values[row * c.columns];
      double m = 0, terms_of_mean = 0, variance = 0;
      for (int32_t i = 0; i < c.columns; ++i) m += x[i] / c.columns, terms_of_mean += std::abs(x[i]) / c.columns;
      for (int32_t i = 0; i < c.columns; ++i) variance += (x[i] - m) * (x[i] - m) / c.columns;
      double r = 1 / std::sqrt(variance + eps);
      if (!gives_statistics) m = static_cast<float>(m), r = static_cast<float>(r);  // as backward is given them
      if (gives_statistics) {
        mean.expect(row, m, terms_of_mean);
        rstd.expect(row, r, r * (1 + terms_of_mean));
      }
      statistics[0].push_back(m);
      statistics[1].push_back(r);
      const double* const gradient = &second.tensor.values[row * c.columns];
      const int64_t group = group_of(row) * c.columns;
      const double *const s = &scale.tensor.values[group], *const add = &shift.tensor.values[group];
      double mean_g = 0, mean_gh = 0, terms_g = 0, terms_gh = 0;
      for (int32_t i = 0; i < c.columns; ++i) {
        const double h = (x[i] - m) * r, size = (std::abs(x[i]) + std::abs(m)) * r, g = gradient[i] * (1 + s[i]);
        if (gives_statistics) {  // of equal numbers nothing may be left, whatever 1 / sqrt(eps) makes of it
          const double of_h = c.data == ModulationData::constant ? 0 : size * std::abs(1 + s[i]);
          out.expect(row * c.columns + i, h * (1 + s[i]) + add[i], of_h + std::abs(add[i]));
        }
        sums[0][group + i] += gradient[i] * h;
        terms[0][group + i] += std::abs(gradient[i]) * size;
        sums[1][group + i] += gradient[i];
        terms[1][group + i] += std::abs(gradient[i]);
        mean_g += g / c.columns;
        terms_g += std::abs(g) / c.columns;
        mean_gh += g * h / c.columns;
        terms_gh += std::abs(g) * size / c.columns;
      }
      if (gives_statistics) continue;
      for (int32_t i = 0; i < c.columns; ++i) {
        const double h = (x[i] - m) * r, size = (std::abs(x[i]) + std::abs(m)) * r, g = gradient[i] * (1 + s[i]);
        out.expect(row * c.columns + i, r * (g - mean_g - h * mean_gh), r * (std::abs(g) + terms_g + size * terms_gh));
      }
    }
    if (gives_statistics) return;
    mean.fill([&](int64_t row) { return statistics[0][row]; });
    rstd.fill([&](int64_t row) { return statistics[1][row]; });
    for (int64_t i = 0; i < groups * c.columns; ++i) {
      grad_scale.expect(i, sums[0][i], terms[0][i]);
      grad_shift.expect(i, sums[1][i], terms[1][i]);
    }
  }

  void solve_gate() {
    std::vector<double> sums(groups * c.columns), terms(groups * c.columns);
    for (int64_t i = 0; i < all_rows * c.columns; ++i) {
      const int64_t of_gate = group_of(i / c.columns) * c.columns + i % c.columns;
      const double gate = scale.tensor.values[of_gate], a = first.tensor.values[i], b = second.tensor.values[i];
      if (is_backward)
        out.expect(i, gate * b, std::abs(gate * b));
      else
        out.expect(i, a + gate * b, std::abs(a) + std::abs(gate * b));
      sums[of_gate] += a * b;
      terms[of_gate] += std::abs(a * b);
    }
    if (!is_backward) return;
    for (size_t i = 0; i < sums.size(); ++i) grad_scale.expect(i, sums[i], terms[i]);
  }

  void launch() {
    ModulationParams params;
    params.clips = c.clips;
    params.frames = c.frames;
    params.rows = c.rows;
    params.columns = c.columns;
    params.of_frames = c.of_frames;
    params.eps = static_cast<float>(eps);
    params.first = first.as_params;
    params.second = second.as_params;
    params.scale = scale.as_params;
    params.shift = shift.as_params;
    params.out = out.data();
    params.mean = reinterpret_cast<float*>(mean.data());
    params.rstd = reinterpret_cast<float*>(rstd.data());
    params.grad_scale = grad_scale.data();
    params.grad_shift = grad_shift.data();
    const bool aligned =
        c.layout != ModulationLayout::misaligned && c.columns % piece_columns(c.id.first, c.id.second) == 0;
    const ModulationPlan plan = plan_modulation_kernel(c.id, params, aligned, c.multiprocessors);
    if (!plan.possible) throw std::runtime_error("no plan");
    Tensor workspace = contiguous(RowElement::float32, plan.workspace_elements);
    params.workspace = reinterpret_cast<float*>(workspace.data());
    device::finish(launch_modulation_kernel(c.id, params, plan, nullptr));
  }

  static constexpr double eps = 1e-6;
  const ModulationCase& c;
  const int64_t all_rows, groups;
  const bool is_norm, is_backward;
  Rows first, second;
  Vectors scale, shift;
  Tensor out, mean, rstd, grad_scale, grad_shift;
};

}  // namespace

std::string ModulationCase::name() const {
  const char* kernels[] = {"norm_forward", "norm_backward", "gate_forward", "gate_backward"};
  const char* kinds[] = {"random", "far", "constant", "large"};
  const char* layouts[] = {"plain", "view", "misaligned"};
  char text[160];
  std::snprintf(text, sizeof text, "modulation_%s_%s-%s-%s-by-%s-%lldx%dx%dx%d-%s-%s-%s-on%lld",
                kernels[static_cast<int>(id.kernel)], architecture_name(id.architecture), name_of(id.first),
                name_of(id.second), name_of(modulation), static_cast<long long>(clips), frames, rows, columns,
                of_frames ? "frames" : "clips", layouts[static_cast<int>(layout)], kinds[static_cast<int>(data)],
                static_cast<long long>(multiprocessors));
  return text;
}

std::vector<ModulationCase> modulation_cases() {
  struct Size {
    int64_t clips;
    int32_t frames, rows, columns;
  };
  // One number; less than a piece; a part of a warp's pieces; several warps in a unit; as many as a block may have, two
  // pieces in a thread from 3073 on (backward: 4097); FrameDiT-XL, of which a part of the last warp has columns.
  const Size sizes[] = {{1, 1, 1, 1},    {2, 3, 5, 7},    {2, 3, 5, 8},    {1, 2, 41, 72},  {3, 2, 3, 33},
                        {2, 1, 19, 256}, {1, 3, 7, 264},  {2, 2, 9, 384},  {1, 2, 11, 520}, {2, 2, 3, 1152},
                        {1, 2, 9, 1153}, {1, 1, 5, 3080}, {1, 2, 2, 4104}, {1, 2, 2, 5123}};
  const RowElement b = RowElement::bfloat16, h = RowElement::float16, f = RowElement::float32;
  const RowElement pairs[][2] = {{b, b}, {f, b}, {h, h}, {f, f}, {b, f}, {f, h}, {h, f}};
  std::vector<ModulationCase> cases;
  int turn = 0;
  for (int kernel = 0; kernel < 4; ++kernel)
    for (const Size& size : sizes)
      for (int i = 0; i < (size.columns > 1000 ? 2 : 4); ++i, ++turn) {  // the settings take turns
        const auto& pair = pairs[turn % 7];
        cases.push_back({{static_cast<ModulationKernel>(kernel), pair[0], pair[1], Architecture::sm80},
                         static_cast<RowElement>(turn / 2 % 3),
                         size.clips,
                         size.frames,
                         size.rows,
                         size.columns,
                         (turn + turn / 4) % 2 == 1,
                         static_cast<ModulationLayout>((turn + kernel) % 3),
                         static_cast<ModulationData>((i + turn / 4) % 4),
                         1 + turn % 3});
      }
  // Short frames with gaps between them, of which a unit takes several turns.
  for (int kernel = 0; kernel < 4; ++kernel)
    for (const auto& pair : {pairs[0], pairs[1]})
      cases.push_back({{static_cast<ModulationKernel>(kernel), pair[0], pair[1], Architecture::sm80},
                       b,
                       2,
                       40,
                       3,
                       40,
                       false,
                       ModulationLayout::view,
                       ModulationData::random,
                       1});
  return cases;
}

FrameOutcome run_modulation_case(const ModulationCase& c) {
  Problem p(c);
  p.draw();
  p.is_norm ? p.solve_norm() : p.solve_gate();
  p.launch();
  FrameOutcome outcome{true, "", {}};
  const auto check = [&](const char* name, Tensor& tensor) {
    outcome.right = tensor.agrees(name, outcome) && outcome.right;
  };
  check(p.is_backward ? "gradient" : "out", p.out);
  if (c.id.kernel == ModulationKernel::norm_forward) {
    check("mean", p.mean);
    check("rstd", p.rstd);
  }
  if (p.is_backward) check("grad_scale", p.grad_scale);
  if (c.id.kernel == ModulationKernel::norm_backward) check("grad_shift", p.grad_shift);
  return outcome;
}

}  // namespace frameattn
