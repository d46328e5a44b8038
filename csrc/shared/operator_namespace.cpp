#include "csrc/shared/operator_namespace.h"

#ifndef FRAMEATTN_NAMESPACE
#define FRAMEATTN_NAMESPACE "frameattn"
#endif

namespace frameattn {

const char kOperatorNamespace[] = FRAMEATTN_NAMESPACE;  // there before any constructor runs that registers

}  // namespace frameattn
