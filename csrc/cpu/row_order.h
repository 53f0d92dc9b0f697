// In which order the rows of a block are visited: class by class, or as they come. The bits are the
// same.
#pragma once

#include <string>

#include "class_moments.h"

namespace deeprep {

// "class" or "input" forces an order, where it is possible; "auto" chooses by the measurements in
// row_order.cpp. False, and no change, for another name.
bool set_row_order(const std::string& name);
std::string row_order();

// Whether a batch in several groups is visited in input order.
bool visit_in_input_order(const Features& features, int64_t num_classes);

}  // namespace deeprep
