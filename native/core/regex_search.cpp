// Regular expressions over the names of tensors, found by the same std::regex as llama.cpp's own.
#include "big_stack.h"
#include "shim.h"

#include <algorithm>
#include <cstring>
#include <regex>

size_t moebind_regex_search(const char * pattern, const char ** names, size_t n_names, bool * matches) {
    // Compiling recurses over the pattern, searching over the longest name.
    size_t longest = std::strlen(pattern);
    for (size_t i = 0; i < n_names; i++) {
        longest = std::max(longest, std::strlen(names[i]));
    }
    size_t found = 0;
    moebind::on_big_stack((size_t(1) << 20) + 4096 * longest, [&] {
        const std::regex regex(pattern);
        for (size_t i = 0; i < n_names; i++) {
            matches[i] = std::regex_search(names[i], regex);
            found += matches[i];
        }
    });
    return found;
}
