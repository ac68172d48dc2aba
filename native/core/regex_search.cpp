// Regular expressions over the names of tensors, found by the same std::regex as llama.cpp's own.
#include "big_stack.h"
#include "shim.h"

#include <algorithm>
#include <cstring>
#include <locale>
#include <regex>

namespace {

// libstdc++'s tables of the characters that patterns are read by are filled as they are asked for, without a lock
// (https://gcc.gnu.org/PR77704). Filled as a whole while the library is loaded, they are only read by threads.
[[maybe_unused]] const bool characters_are_known = [] {
    const auto & characters = std::use_facet<std::ctype<char>>(std::locale::classic());
    const char   one        = 'a';
    char         narrow     = 0;
    characters.narrow(&one, &one + 1, '\0', &narrow);
    return characters.widen(narrow) == one;
}();

}  // namespace

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
