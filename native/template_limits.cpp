// llama.cpp's Jinja engine runs what a template says: a macro may call itself until the stack ends, range() may fill the
// memory, a list may contain itself, a loop may take for ever, and divisibleby(0) divides by zero.
//
// The engine offers no place to look at what it does, but it is in a shared library, whose calls of its own functions
// are resolved by name: those defined here come first, since the extension comes before the libraries it is linked to.
// They check, and call the engine's own. This file is compiled with its symbols visible for that; work() tells whether
// they are found.
#include "template_limits.h"

#include "big_stack.h"
#include "jinja/lexer.h"
#include "jinja/parser.h"
#include "jinja/runtime.h"
#include "jinja/value.h"

#include <dlfcn.h>

#include <stdexcept>
#include <string>
#include <typeinfo>

namespace {

constexpr size_t depth_max  = 1000;                 // of statements and expressions, one in another
constexpr size_t stack_min  = size_t(4) << 20;      // what a single statement may need
constexpr size_t range_max  = 10'000;   // a loop cannot be stopped while it begins, which takes 25 us an item
constexpr size_t array_max  = 100'000;  // items
constexpr size_t text_max   = size_t(16) << 20;     // bytes
constexpr size_t parts_max  = 1'000'000;            // pieces of text
constexpr int    nested_max = 500;                  // of arrays and objects
constexpr size_t values_max = 1'000'000;

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

void check_shape(const jinja::value & value, int depth, size_t & seen) {
    if (depth > nested_max || ++seen > values_max) {
        refuse("builds a value that is nested too deeply, contains itself or is too large");
    }
    if (jinja::is_val<jinja::value_array>(value)) {
        for (const jinja::value & item : value->as_array()) {
            check_shape(item, depth + 1, seen);
        }
    } else if (jinja::is_val<jinja::value_object>(value)) {
        for (const auto & [key, item] : value->as_ordered_object()) {
            check_shape(item, depth + 1, seen);
        }
    }
}

void check_shape(const jinja::value & value) {
    size_t seen = 0;
    check_shape(value, 0, seen);
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

// Evaluating these again changes nothing.
bool plain(const jinja::statement_ptr & expression) {
    if (const auto * member = jinja::cast_stmt<jinja::member_expression>(expression)) {
        return plain(member->object) && plain(member->property);
    }
    return jinja::is_stmt<jinja::identifier>(expression) || jinja::is_stmt<jinja::integer_literal>(expression) ||
           jinja::is_stmt<jinja::string_literal>(expression);
}

// What can make a value that contains itself, or nest values by a loop.
void check_changes(const jinja::statement & done, jinja::context & ctx) {
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
    } else if (typeid(done) == typeid(jinja::call_expression)) {
        const auto & callee = static_cast<const jinja::call_expression &>(done).callee;
        const auto * member = jinja::cast_stmt<jinja::member_expression>(callee);
        if (member != nullptr && plain(callee)) {
            check_shape(member->object->execute(ctx));
        }
    }
}

template <class Function> Function * next(const char * name) {
    void * found = dlsym(RTLD_NEXT, name);
    if (found == nullptr) {
        throw std::runtime_error(std::string("llama-common has no ") + name);
    }
    return reinterpret_cast<Function *>(found);
}

int64_t positional(const jinja::func_args & args, size_t i, int64_t otherwise) {
    if (args.count() <= i || !jinja::is_val<jinja::value_int>(args.get_pos(i))) {
        return otherwise;
    }
    return args.get_pos(i)->as_int();
}

void check_range(const jinja::func_args & args) {
    const bool   from_zero = args.count() == 1;
    const double start     = from_zero ? 0.0 : double(positional(args, 0, 0));
    const double stop      = double(positional(args, from_zero ? 0 : 1, 0));
    const double step      = double(positional(args, 2, 1));
    if (step != 0 && (stop - start) / step > double(range_max)) {
        refuse("asks for a range of more than 10,000 numbers");
    }
}

size_t asked_by(const std::string & source) {
    jinja::lexer      lexer;
    jinja::program    program = jinja::parse_from_tokens(lexer.tokenize(source));
    jinja::context    ctx;
    jinja::runtime    runtime(ctx);
    std::atomic<bool> stop{ false };
    current = { &stop, 0, 0, nullptr, 0 };
    runtime.execute(program);
    return current.asked;
}

// Whether the engine's calls of itself come here: the sum asks for itself, and the engine for its two parts.
bool work() {
    try {
        if (asked_by("{{ 1 + 1 }}") < 3) {
            return false;
        }
        asked_by("{{ range(" + std::to_string(range_max + 1) + ") }}");
    } catch (const std::exception &) {
        return true;
    }
    return false;
}

}  // namespace

namespace moebind {

template_limits::template_limits(const std::atomic<bool> & stop) {
    static const bool working = work();
    if (!working) {
        throw std::runtime_error("templates are not run: this build of moebind cannot limit them");
    }
    current = { &stop, 0, 0, nullptr, 0 };
}

template_limits::~template_limits() { current = {}; }

}  // namespace moebind

// --- in place of the engine's own ---

jinja::value jinja::statement::execute(jinja::context & ctx) const {
    // A member function is called like one that takes the object first.
    static auto * const own =
        next<jinja::value(const jinja::statement *, jinja::context &)>("_ZNK5jinja9statement7executeERNS_7contextE");
    if (current.stop == nullptr) {
        return own(this, ctx);
    }
    const level  here;
    jinja::value result = own(this, ctx);
    check_size(result);
    check_changes(*this, ctx);
    return result;
}

jinja::string & jinja::string::append(const jinja::string & other) {
    if (current.stop != nullptr) {
        if (current.growing != this) {
            current.growing = this;
            current.grown   = 0;
        }
        current.grown += other.length();
        if (current.grown > text_max || parts.size() + other.parts.size() > parts_max) {
            refuse("makes a text of more than 16 MiB");
        }
    }
    if (&other == this) {
        const auto copy = other.parts;
        parts.insert(parts.end(), copy.begin(), copy.end());
    } else {
        parts.insert(parts.end(), other.parts.begin(), other.parts.end());
    }
    return *this;
}

const jinja::func_builtins & jinja::global_builtins() {
    static const func_builtins builtins = [] {
        Dl_info info;
        if (dladdr(reinterpret_cast<void *>(&jinja::global_builtins), &info) == 0 || info.dli_sname == nullptr) {
            throw std::runtime_error("this build of moebind cannot limit templates");
        }
        func_builtins      all        = next<const func_builtins &()>(info.dli_sname)();
        const func_handler range      = all.at("range");
        const func_handler divisible  = all.at("test_is_divisibleby");
        all["range"]                  = [range](const func_args & args) {
            check_range(args);
            return range(args);
        };
        all["test_is_divisibleby"] = [divisible](const func_args & args) {
            const int64_t by = positional(args, 1, 1);
            if (by == 0) {
                refuse("asks what is divisible by zero");
            }
            return by == -1 ? jinja::value(mk_val<value_bool>(true)) : divisible(args);
        };
        return all;
    }();
    return builtins;
}
