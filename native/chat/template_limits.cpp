// llama.cpp's Jinja engine runs what a template says: a macro may call itself until the stack ends, range() may fill the
// memory, a list may contain itself, a loop may take for ever, and divisibleby(0) divides by zero.
//
// vendor/patches/jinja-hooks.patch gives the engine places that ask here. Filters and functions of templates are looked up
// in tables, which are changed here; work() tells whether all of it has effect.
#include "template_limits.h"

#include "big_stack.h"
#include "internal.h"
#include "json.h"
#include "jinja/lexer.h"
#include "jinja/parser.h"
#include "jinja/runtime.h"
#include "jinja/value.h"
#include "template_numbers.h"

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <typeinfo>

namespace {

constexpr size_t depth_max  = 1000;              // of statements and expressions, one in another
constexpr size_t stack_min  = size_t(4) << 20;   // what a single statement may need
constexpr size_t range_max  = 10'000;            // a loop cannot be stopped while it begins, which takes 25 us an item
constexpr size_t array_max  = 100'000;           // items
constexpr size_t text_max   = size_t(16) << 20;  // bytes
constexpr size_t parts_max  = 200'000;           // pieces of text
constexpr int    nested_max = 500;               // of arrays and objects
constexpr size_t values_max = 1'000'000;
constexpr double moved_max  = 2e9;               // bytes

struct limits {
    const std::atomic<bool> * stop;
    size_t                    depth;
    size_t                    asked;
    const jinja::string *     growing;  // what text was appended to last, and how much
    size_t                    grown;
};

thread_local limits current;

[[noreturn]] void refuse(const std::string & what) { throw std::runtime_error("the template " + what); }

// Counts how many calls of execute this one is in, also when it throws.
struct level {
    level() {
        current.asked++;
        if (current.stop->load(std::memory_order_relaxed)) {
            refuse("was stopped");
        }
        if (current.depth >= depth_max || moebind::stack_left() < stack_min) {
            refuse("recurses too deeply");
        }
        current.depth++;
    }
    ~level() { current.depth--; }
};

void check_shape(const jinja::value & value, int depth, size_t & seen, size_t & bytes) {
    if (jinja::is_val<jinja::value_string>(value)) {
        bytes += static_cast<const jinja::value_string_t &>(*value).val_str.length();
    }
    if (depth > nested_max || ++seen > values_max || bytes > 4 * text_max) {
        refuse("builds a value that is nested too deeply, contains itself or is too large");
    }
    if (jinja::is_val<jinja::value_array>(value)) {
        for (const jinja::value & item : value->as_array()) {
            check_shape(item, depth + 1, seen, bytes);
        }
    } else if (jinja::is_val<jinja::value_object>(value)) {
        for (const auto & [key, item] : value->as_ordered_object()) {
            check_shape(item, depth + 1, seen, bytes);
        }
    }
}

void check_shape(const jinja::value & value) {
    size_t seen  = 0;
    size_t bytes = 0;
    check_shape(value, 0, seen, bytes);
}

void check_size(const jinja::value & value) {
    if (value == nullptr) {
        return;
    }
    if (jinja::is_val<jinja::value_string>(value)) {
        const auto & text = static_cast<const jinja::value_string_t &>(*value).val_str;
        if (text.parts.size() > parts_max || text.length() > text_max) {
            refuse("makes a text of more than 16 MiB");
        }
    } else if (jinja::is_val<jinja::value_array>(value) && value->as_array().size() > array_max) {
        refuse("makes a list of more than 100,000 items");
    }
}

// What can make a value that contains itself, or nest values by a loop.
void check_changes(const jinja::statement & done, const jinja::value & result, jinja::context & ctx) {
    if (typeid(done) == typeid(jinja::array_literal) || typeid(done) == typeid(jinja::object_literal) ||
        typeid(done) == typeid(jinja::tuple_literal) || typeid(done) == typeid(jinja::binary_expression)) {
        check_shape(result);
    }
    if (typeid(done) == typeid(jinja::set_statement)) {
        const auto & assignee = static_cast<const jinja::set_statement &>(done).assignee;
        if (const auto * name = jinja::cast_stmt<jinja::identifier>(assignee)) {
            check_shape(ctx.get_val(name->val));
        } else if (const auto * member = jinja::cast_stmt<jinja::member_expression>(assignee)) {
            check_shape(member->object->execute(ctx));
        } else if (const auto * tuple = jinja::cast_stmt<jinja::tuple_literal>(assignee)) {
            for (const auto & each : tuple->val) {
                check_shape(each->execute(ctx));
            }
        }
    }
}

jinja::value execute(const jinja::statement & what, jinja::context & ctx) {
    if (current.stop == nullptr) {
        return what.execute_unhooked(ctx);
    }
    const level  here;
    jinja::value result = what.execute_unhooked(ctx);
    moebind::keep_digits(result);
    check_size(result);
    check_changes(what, result, ctx);
    return result;
}

void before_append(const jinja::string & text, const jinja::string & more) {
    if (current.stop == nullptr) {
        return;
    }
    if (current.growing != &text) {
        current.growing = &text;
        current.grown   = 0;
    }
    current.grown += more.length();
    if (current.grown > text_max || text.parts.size() + more.parts.size() > parts_max) {
        refuse("makes a text of more than 16 MiB");
    }
}

// --- filters and functions ---

using arguments = jinja::func_args;

std::string text_of(const jinja::value & value) {
    return jinja::is_val<jinja::value_string>(value) ? value->as_string().str() : std::string();
}

std::string text_at(const arguments & args, size_t i) { return i < args.count() ? text_of(args.get_pos(i)) : std::string(); }

int64_t number_at(const arguments & args, size_t i, int64_t otherwise) {
    return i < args.count() && jinja::is_val<jinja::value_int>(args.get_pos(i)) ? args.get_pos(i)->as_int() : otherwise;
}

// Bytes of all texts in a value.
double text_in(const jinja::value & value) {
    double all = 8;  // brackets, commas, numbers
    if (jinja::is_val<jinja::value_string>(value)) {
        all += double(static_cast<const jinja::value_string_t &>(*value).val_str.length());
    } else if (jinja::is_val<jinja::value_array>(value)) {
        for (const jinja::value & item : value->as_array()) {
            all += text_in(item);
        }
    } else if (jinja::is_val<jinja::value_object>(value)) {
        for (const auto & [key, item] : value->as_ordered_object()) {
            all += text_in(key) + text_in(item);
        }
    }
    return all;
}

size_t occurrences(const std::string & text, const std::string & part) {
    size_t count = 0;
    for (size_t at = 0; !part.empty() && (at = text.find(part, at)) != std::string::npos; at += part.size()) {
        count++;
    }
    return part.empty() ? text.size() + 1 : count;
}

void check_text(double bytes) {
    if (bytes > double(text_max)) {
        refuse("makes a text of more than 16 MiB");
    }
}

// The engine moves the rest of a text for each part that it finds.
void check_moves(size_t count, size_t length) {
    if (double(count) * double(length) > moved_max) {
        refuse("splits or replaces too much in a text");
    }
}

void check_range(const arguments & args) {
    const bool   from_zero = args.count() == 1;
    const double start     = from_zero ? 0.0 : double(number_at(args, 0, 0));
    const double stop      = double(number_at(args, from_zero ? 0 : 1, 0));
    const double step      = double(number_at(args, 2, 1));
    if (step != 0 && (stop - start) / step > double(range_max)) {
        refuse("asks for a range of more than 10,000 numbers");
    }
}

void check_divisor(const arguments & args) {
    const int64_t by = number_at(args, 1, 1);
    if (by == 0 || by == -1) {
        refuse("asks what is divisible by zero, or by minus one");
    }
}

void check_split(const arguments & args) {
    const std::string text  = text_at(args, 0);
    const size_t      count = occurrences(text, args.count() > 1 ? text_at(args, 1) : " ");
    if (count > array_max) {
        refuse("makes a list of more than 100,000 items");
    }
    check_moves(count, text.size());
}

void check_replace(const arguments & args) {
    const std::string text = text_at(args, 0), before = text_at(args, 1), after = text_at(args, 2);
    const size_t      count = occurrences(text, before);
    check_text(double(text.size()) + double(count) * double(after.size()));
    check_moves(before.empty() || before.size() == after.size() ? 0 : count, std::max(text.size(), count * after.size()));
}

void check_indent(const arguments & args) {
    const std::string  text  = text_at(args, 0);
    const jinja::value given = args.get_kwarg_or_pos("width", 1);
    const double       width = jinja::is_val<jinja::value_int>(given) ? double(given->as_int()) : double(text_of(given).size());
    check_text(double(text.size()) + double(occurrences(text, "\n") + 1) * width);
}

void check_joined(const arguments & args) {
    double all = 0;
    for (const jinja::value & value : args.get_args()) {
        all += text_in(value);
    }
    const double separators = args.count() > 0 && jinja::is_val<jinja::value_array>(args.get_pos(0)) ?
                                  double(args.get_pos(0)->as_array().size()) :
                                  0.0;
    check_text(all + separators * double(text_of(args.get_kwarg_or_pos("d", 1)).size()));
}

void check_tojson(const arguments & args) {
    const jinja::value indent = args.get_kwarg_or_pos("indent", 2);
    if (jinja::is_val<jinja::value_int>(indent) && indent->as_int() > 100) {
        refuse("indents by more than 100 spaces");
    }
    check_text(args.count() > 0 ? text_in(args.get_pos(0)) : 0);
}

// Not const when it was filled, and nobody runs a template yet.
jinja::func_handler & entry_of(const jinja::func_builtins & table, const char * name) {
    return const_cast<jinja::func_builtins &>(table).at(name);
}

void limit(const jinja::func_builtins & table, const char * name, void (*check)(const arguments &)) {
    jinja::func_handler & entry = entry_of(table, name);
    entry                       = [check, own = entry](const arguments & args) {
        if (current.stop != nullptr) {
            check(args);
        }
        return own(args);
    };
}

void limit_all() {
    const jinja::func_builtins & functions = jinja::global_builtins();
    limit(functions, "range", check_range);
    limit(functions, "test_is_divisibleby", check_divisor);
    limit(functions, "tojson", check_tojson);
    const jinja::func_builtins & of_text = jinja::value_string_t().get_builtins();
    limit(of_text, "split", check_split);
    limit(of_text, "rsplit", check_split);
    limit(of_text, "replace", check_replace);
    limit(of_text, "indent", check_indent);
    limit(of_text, "format", check_joined);
    const jinja::func_builtins & of_lists = jinja::value_array_t().get_builtins();
    limit(of_lists, "join", check_joined);
    jinja::func_handler & append = entry_of(of_lists, "append");
    append                       = [own = append](const arguments & args) {
        jinja::value list = own(args);
        check_shape(list);
        return list;
    };
    limit(of_lists, "string", check_tojson);
    limit(of_lists, "tojson", check_tojson);
    const jinja::func_builtins & of_objects = jinja::value_object_t().get_builtins();
    limit(of_objects, "join", check_joined);
    limit(of_objects, "string", check_tojson);
    limit(of_objects, "tojson", check_tojson);
}

std::string rendered(const std::string & source, const common_json & values) {
    jinja::lexer      lexer;
    jinja::program    program = jinja::parse_from_tokens(lexer.tokenize(source));
    jinja::context    ctx;
    jinja::runtime    runtime(ctx);
    std::atomic<bool> stop{ false };
    current = { &stop, 0, 0, nullptr, 0 };
    jinja::global_from_json(ctx, values, false);
    return jinja::runtime::gather_string_parts(runtime.execute(program))->as_string().str();
}

// Whether the engine asks: the sum for itself, and for its two parts. The number comes through template_numbers.cpp.
bool work() {
    jinja::hooks() = { execute, before_append, moebind::globals_of_json, moebind::written_as_json };
    limit_all();
    const bool   exact   = rendered("{{ [x] | tojson }}", common_json{ { "x", 0.123456789 } }) == "[0.123456789]";
    const bool   summed  = rendered("{{ 1 + 1 }}", common_json::object()) == "2";
    const size_t asked   = current.asked;
    bool         refused = false;
    try {
        rendered("{{ range(" + std::to_string(range_max + 1) + ") }}", common_json::object());
    } catch (const std::exception &) {
        refused = true;
    }
    current = {};
    return exact && summed && asked >= 3 && refused;
}

}  // namespace

namespace moebind {

template_limits::template_limits(const std::atomic<bool> & stop) {
    // A fork waits meanwhile: it takes a millisecond, and what another thread was making, a child would wait for.
    static std::optional<bool> working;
    {
        const auto lock = fork_lock();
        if (!working) {
            working = work();
        }
    }
    if (!*working) {
        throw std::runtime_error("templates are not run: this build of moebind cannot limit them, or keep their numbers");
    }
    current = { &stop, 0, 0, nullptr, 0 };
}

template_limits::~template_limits() { current = {}; }

}  // namespace moebind
