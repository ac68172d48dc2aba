// Chat templates and replies, which only llama-common knows. Requests and answers are JSON, since both sides have it.
//
// All of it recurses over what it is given, and so runs on a large stack.
#include "chat.h"

#include "big_stack.h"
#include "chat-peg-parser.h"
#include "json.h"
#include "shim.h"
#include "template_limits.h"
#include "template_numbers.h"

#include <memory>
#include <string>

using moebind::on_big_stack;

struct moebind_text {
    std::string text;
};

struct moebind_chat_templates {
    common_chat_templates_ptr templates;
};

struct moebind_chat_parser {
    common_chat_parser_params params;
};

namespace {

// What running a template takes, within its limits.
constexpr size_t stack_base = size_t(64) << 20;
// Parsing takes up to 2 KiB of stack a character of a template, and up to 3 KiB a bracket of a reply.
constexpr size_t stack_per_byte = 4096;

std::string default_source(const llama_model * model) {
    const char * source = llama_model_chat_template(model, nullptr);
    return source == nullptr ? "" : source;
}

// llama.cpp would say it to its log only.
void check_syntax(const std::string & source) {
    jinja::lexer lexer;
    jinja::parse_from_tokens(lexer.tokenize(source));
}

common_json of_text(const char * text, size_t size) { return common_json::parse(std::string(text, size)); }

moebind_text * answer(const common_json & json) { return new moebind_text{ json.dump_safe() }; }

const char * name_of(common_grammar_trigger_type type) {
    switch (type) {
        case COMMON_GRAMMAR_TRIGGER_TYPE_TOKEN: return "token";
        case COMMON_GRAMMAR_TRIGGER_TYPE_WORD: return "word";
        case COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN: return "pattern";
        case COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN_FULL: return "pattern_full";
    }
    return "";
}

common_chat_templates_inputs inputs_of(const common_json & request) {
    common_chat_templates_inputs inputs;
    inputs.use_jinja             = request.at("use_jinja").get<bool>();
    inputs.messages              = common_chat_msgs_parse_oaicompat(request.at("messages"));
    inputs.tools                 = common_chat_tools_parse_oaicompat(request.at("tools"));
    inputs.tool_choice           = common_chat_tool_choice_parse_oaicompat(request.at("tool_choice").get<std::string>());
    inputs.parallel_tool_calls   = request.at("parallel_tool_calls").get<bool>();
    inputs.json_schema           = request.at("json_schema").get<std::string>();
    inputs.add_generation_prompt = request.at("add_generation_prompt").get<bool>();
    inputs.enable_thinking       = request.at("enable_thinking").get<bool>();
    inputs.reasoning_format      = common_reasoning_format_from_name(request.at("reasoning_format").get<std::string>());
    if (request.at("continue_final_message").get<bool>()) {
        inputs.continue_final_message = COMMON_CHAT_CONTINUATION_AUTO;
    }
    for (const auto & [name, value] : request.at("kwargs").items()) {
        inputs.chat_template_kwargs[name] = value.dump();
    }
    return inputs;
}

// Whether a parser knows a form of calls.
bool reads_calls(const common_peg_arena & parser) {
    for (size_t i = 0; i < parser.size(); i++) {
        const auto * tagged = std::get_if<common_peg_tag_parser>(&parser.get(i));
        if (tagged != nullptr && tagged->tag == common_chat_peg_builder::TOOL_NAME) {
            return true;
        }
    }
    return false;
}

common_json described(const common_chat_params & params) {
    common_json triggers = common_json::array();
    for (const common_grammar_trigger & trigger : params.grammar_triggers) {
        triggers.push_back({ { "type", name_of(trigger.type) }, { "value", trigger.value } });
    }
    return common_json{
        { "prompt", params.prompt },
        { "grammar", params.grammar },
        { "grammar_lazy", params.grammar_lazy },
        { "triggers", triggers },
        { "preserved_tokens", params.preserved_tokens },
        { "additional_stops", params.additional_stops },
        { "generation_prompt", params.generation_prompt },
        { "supports_thinking", params.supports_thinking },
        { "thinking_start_tag", params.thinking_start_tag },
        { "thinking_end_tags", params.thinking_end_tags },
        { "format", common_chat_format_name(params.format) },
        { "reads_calls", reads_calls(params.parser) },
    };
}

common_chat_msg parsed(const moebind_chat_parser & parser, const common_json & request) {
    const auto text = request.at("generation_prompt").get<std::string>() + request.at("text").get<std::string>();
    return common_chat_parse(common_chat_input(text), request.at("partial").get<bool>(), parser.params);
}

}  // namespace

const char * moebind_text_data(const moebind_text * text) { return text->text.data(); }

size_t moebind_text_size(const moebind_text * text) { return text->text.size(); }

void moebind_text_free(moebind_text * text) { delete text; }

moebind_chat_templates * moebind_chat_templates_new(const llama_model * model, const char * source, size_t size) {
    std::unique_ptr<moebind_chat_templates> made;
    std::atomic<bool>                       stop{ false };
    on_big_stack(
        stack_base + stack_per_byte * size,
        [&] {
            const moebind::template_limits limits(stop);
            check_syntax(size > 0 ? std::string(source, size) : default_source(model));
            auto templates = common_chat_templates_init(model, std::string(source, size));
            made.reset(new moebind_chat_templates{ std::move(templates) });
        },
        &stop);
    return made.release();
}

void moebind_chat_templates_free(moebind_chat_templates * templates) {
    const size_t size = common_chat_templates_source(templates->templates.get()).size();
    on_big_stack(stack_base + stack_per_byte * size, [&] { delete templates; });
}

moebind_chat_parser * moebind_chat_parser_new() { return new moebind_chat_parser; }

void moebind_chat_parser_free(moebind_chat_parser * parser) { delete parser; }

moebind_text * moebind_chat_apply(const moebind_chat_templates * templates, moebind_chat_parser * parser,
                                  const char * request, size_t size) {
    moebind_text *    result = nullptr;
    std::atomic<bool> stop{ false };
    on_big_stack(
        stack_base,
        [&] {
            const moebind::template_limits limits(stop);
            const common_json              asked = of_text(request, size);
            const moebind::integer_mark    mark(asked.at("integer_mark").get<std::string>());
            common_chat_params             params = common_chat_templates_apply(templates->templates.get(), inputs_of(asked));
            result                 = answer(described(params));
            parser->params.format  = params.format;
            parser->params.parser  = std::move(params.parser);
        },
        &stop);
    return result;
}

moebind_text * moebind_chat_parse(const moebind_chat_parser * parser, const char * request, size_t size) {
    moebind_text *    result = nullptr;
    std::atomic<bool> stop{ false };
    on_big_stack(
        stack_base + stack_per_byte * size,
        [&] {
            const common_chat_msg message = parsed(*parser, of_text(request, size));
            common_json           calls   = common_json::array();
            for (const common_chat_tool_call & call : message.tool_calls) {
                calls.push_back({ { "id", call.id }, { "name", call.name }, { "arguments", call.arguments } });
            }
            result = answer(common_json{
                { "role", message.role },
                { "content", message.render_content("\n") },
                { "reasoning_content", message.reasoning_content },
                { "tool_calls", calls },
            });
        },
        &stop);
    return result;
}
