// Everything a C++ user of frameattn may call.
#pragma once

#include <frameattn/activation.h>
#include <frameattn/build_info.h>
#include <frameattn/matrix_attention.h>
#include <frameattn/modulation.h>
#include <frameattn/monarch_attention.h>
