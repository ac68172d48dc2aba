// JSON schemas as grammars, through llama-common. src/moebind/sampling/json_schema.py sees to it that nothing is dropped on the way.
#include "big_stack.h"
#include "json-schema-to-grammar.h"
#include "shim.h"

#include <string>

size_t moebind_json_schema_to_grammar(const char * schema, char * buffer, size_t size) {
    std::string grammar;
    moebind::on_big_stack(size_t(256) << 20,
                          [&]() { grammar = json_schema_to_grammar(common_json::parse(schema), true); });
    grammar.copy(buffer, size);
    return grammar.size();
}
