// Numbers of chat templates, which keep all their digits (template_numbers.cpp).
#pragma once

#include "jinja/value.h"

#include <string>
#include <string_view>

class common_json;

namespace moebind {

// While one lives, a text that begins with `text` is, to the templates that this thread runs, the integer behind it:
// how integers come that JSON's readers would make floats of.
class integer_mark {
  public:
    explicit integer_mark(const std::string & text);
    ~integer_mark();
    integer_mark(const integer_mark &)             = delete;
    integer_mark & operator=(const integer_mark &) = delete;
};

// In place of jinja::global_from_json and jinja::value_to_json.
void        globals_of_json(jinja::context & ctx, const common_json & json, bool mark_input);
std::string written_as_json(const jinja::value & value, int indent, std::string_view item_sep, std::string_view key_sep);

// Replaces a float of the engine's by one that is written with all digits.
void keep_digits(jinja::value & value);

}  // namespace moebind
