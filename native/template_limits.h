// What keeps a chat template from ending the process (template_limits.cpp).
#pragma once

#include <atomic>

namespace moebind {

// While one lives, the templates that this thread runs are limited, and stop soon after `stop` was set.
class template_limits {
  public:
    explicit template_limits(const std::atomic<bool> & stop);
    ~template_limits();
    template_limits(const template_limits &)             = delete;
    template_limits & operator=(const template_limits &) = delete;

    // Throws unless the limits were asked at least once: they would be without effect in such a build.
    void must_have_worked() const;
};

}  // namespace moebind
