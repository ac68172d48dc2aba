// What keeps a chat template from ending the process (template_limits.cpp).
#pragma once

#include <atomic>

namespace moebind {

// While one lives, the templates that this thread runs are limited, and stop soon after `stop` was set. Making one throws
// in a build in which that has no effect.
class template_limits {
  public:
    explicit template_limits(const std::atomic<bool> & stop);
    ~template_limits();
    template_limits(const template_limits &)             = delete;
    template_limits & operator=(const template_limits &) = delete;

};

}  // namespace moebind
