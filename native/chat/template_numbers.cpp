// llama.cpp's Jinja engine writes floats with six digits, 1.0 as 1, and integers from 2^63 on negative; Python, for which
// templates are written, keeps every digit. Here every float and large integer of a template knows its text.
//
// The functions at the end are the engine's hooks (vendor/patches/jinja-hooks.patch), which template_limits.cpp sets.
#include "template_numbers.h"

#include "json.h"
#include "jinja/runtime.h"

#include <charconv>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <typeinfo>

namespace {

// As Python's repr, which its json uses too.
std::string written(double number) {
    if (!std::isfinite(number)) {
        return std::isnan(number) ? "NaN" : number < 0 ? "-Infinity" : "Infinity";
    }
    char              buffer[64];
    const auto        result = std::to_chars(buffer, buffer + sizeof(buffer), number, std::chars_format::scientific);
    const std::string text(buffer, result.ptr);  // the fewest digits that are this number: -1.25e+07
    const size_t      mark     = text.find('e');
    const int         exponent = std::stoi(text.substr(mark + 1));
    const std::string sign     = text[0] == '-' ? "-" : "";
    std::string       digits   = text.substr(sign.size(), mark - sign.size());
    if (digits.size() > 1) {
        digits.erase(1, 1);  // the point
    }
    const int n_digits = int(digits.size());
    if (exponent < -4 || exponent >= 16) {
        return sign + digits[0] + (n_digits > 1 ? "." + digits.substr(1) : "") + text.substr(mark);
    }
    if (exponent < 0) {
        return sign + "0." + std::string(-exponent - 1, '0') + digits;
    }
    if (n_digits <= exponent + 1) {
        return sign + digits + std::string(exponent + 1 - n_digits, '0') + ".0";
    }
    return sign + digits.substr(0, exponent + 1) + "." + digits.substr(exponent + 1);
}

struct exact_float : jinja::value_float_t {
    using jinja::value_float_t::value_float_t;
    jinja::string as_string() const override { return written(val_flt); }
};

// An integer of more than 63 bits, which the engine cannot compute with: it can only be passed on.
struct large_integer : jinja::value_int_t {
    explicit large_integer(const std::string & text) :
        jinja::value_int_t(text[0] == '-' ? std::numeric_limits<int64_t>::min() : std::numeric_limits<int64_t>::max()),
        text(text) {}

    int64_t       as_int() const override { refuse(); }
    double        as_float() const override { refuse(); }
    jinja::string as_string() const override { return text; }

    const std::string text;

  protected:
    bool equivalent(const jinja::value_t & other) const override {
        const auto * same = dynamic_cast<const large_integer *>(&other);
        return same != nullptr && same->text == text;
    }
    bool nonequal(const jinja::value_t & other) const override { return !equivalent(other); }

  private:
    [[noreturn]] void refuse() const {
        throw std::runtime_error("the integer " + text + " takes more than 63 bits, with which a template cannot compute");
    }
};

thread_local std::string mark;

jinja::value of_json(const common_json & json, bool is_input) {
    if (json.is_null()) {
        return jinja::mk_val<jinja::value_none>();
    }
    if (json.is_boolean()) {
        return jinja::mk_val<jinja::value_bool>(json.get<bool>());
    }
    if (json.is_number_integer()) {
        const std::string text = json.dump();
        int64_t           number;
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
        if (error == std::errc()) {
            return jinja::mk_val<jinja::value_int>(number);
        }
        return std::make_shared<large_integer>(text);
    }
    if (json.is_number_float()) {
        return std::make_shared<exact_float>(json.get<double>());
    }
    if (json.is_string()) {
        const auto text = json.get<std::string>();
        if (!mark.empty() && text.rfind(mark, 0) == 0) {
            return std::make_shared<large_integer>(text.substr(mark.size()));
        }
        auto value = jinja::mk_val<jinja::value_string>(text);
        if (is_input) {
            value->mark_input();
        }
        return value;
    }
    if (json.is_array()) {
        auto list = jinja::mk_val<jinja::value_array>();
        for (const auto & item : json) {
            list->push_back(of_json(item, is_input));
        }
        return list;
    }
    auto object = jinja::mk_val<jinja::value_object>();
    for (auto it = json.begin(); it != json.end(); ++it) {
        object->insert(it.key(), of_json(it.value(), is_input));
    }
    return object;
}

void write_text(std::string & out, const std::string & text) {
    static const char digits[] = "0123456789abcdef";
    out += '"';
    for (const char each : text) {
        const auto code = static_cast<unsigned char>(each);
        switch (each) {
            case '"': out += "\\\""; break;
            case '\\': out += "\\\\"; break;
            case '\b': out += "\\b"; break;
            case '\f': out += "\\f"; break;
            case '\n': out += "\\n"; break;
            case '\r': out += "\\r"; break;
            case '\t': out += "\\t"; break;
            default:
                if (code < 0x20) {
                    out += std::string("\\u00") + digits[code >> 4] + digits[code & 15];
                } else {
                    out += each;
                }
        }
    }
    out += '"';
}

// As the engine writes it, but for the numbers.
class writer {
  public:
    writer(int indent, std::string_view item_sep, std::string_view key_sep) :
        indent(indent), item_sep(item_sep), key_sep(key_sep) {}

    std::string out;

    void write(const jinja::value & value, int level) {
        if (jinja::is_val<jinja::value_bool>(value)) {
            out += value->as_bool() ? "true" : "false";
        } else if (jinja::is_val<jinja::value_float>(value)) {
            out += written(value->as_float());
        } else if (jinja::is_val<jinja::value_int>(value)) {
            out += value->as_string().str();
        } else if (jinja::is_val<jinja::value_string>(value)) {
            write_text(out, value->as_string().str());
        } else if (jinja::is_val<jinja::value_array>(value)) {
            const auto & items = value->as_array();
            enclosed('[', items.size(), level, ']', [&](size_t i) { write(items[i], level + 1); });
        } else if (jinja::is_val<jinja::value_object>(value)) {
            const auto & items = value->as_ordered_object();
            enclosed('{', items.size(), level, '}', [&](size_t i) {
                write_text(out, items[i].first->as_string().str());
                out += key_sep;
                write(items[i].second, level + 1);
            });
        } else {
            out += "null";
        }
    }

  private:
    const int              indent;
    const std::string_view item_sep;
    const std::string_view key_sep;

    template <class Item> void enclosed(char open, size_t count, int level, char close, const Item & item) {
        out += open;
        for (size_t i = 0; i < count; i++) {
            line(level + 1);
            item(i);
            if (i + 1 < count) {
                out += item_sep;
            }
        }
        if (count > 0) {
            line(level);
        }
        out += close;
    }

    void line(int level) {
        if (indent >= 0) {
            out += '\n';
            out.append(size_t(level) * indent, ' ');
        }
    }
};

}  // namespace

namespace moebind {

integer_mark::integer_mark(const std::string & text) { mark = text; }

integer_mark::~integer_mark() { mark.clear(); }

void keep_digits(jinja::value & value) {
    if (value != nullptr && typeid(*value) == typeid(jinja::value_float_t)) {
        value = std::make_shared<exact_float>(value->as_float());
    }
}

void globals_of_json(jinja::context & ctx, const common_json & json, bool mark_input) {
    if (!json.is_object()) {
        throw std::runtime_error("global_from_json: input JSON value must be an object");
    }
    for (auto it = json.begin(); it != json.end(); ++it) {
        ctx.set_val(it.key(), of_json(it.value(), mark_input));
    }
}

std::string written_as_json(const jinja::value & value, int indent, std::string_view item_sep, std::string_view key_sep) {
    writer json(indent, item_sep, key_sep);
    json.write(value, 0);
    return json.out;
}

}  // namespace moebind
