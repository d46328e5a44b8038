// The namespace that the operators have in torch: "frameattn", and another one in a library that is to be loaded beside
// it, since torch ends a process that registers an operator twice. It is a string of one small source, so that such a
// library (tools/build_hub_kernel.py) is all but linked once the usual one is built.
#pragma once

namespace frameattn {

extern const char kOperatorNamespace[];

}  // namespace frameattn
