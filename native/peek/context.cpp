// What a context holds, as far as llama.h does not tell: its graph, its output buffer and its memory.
#include "llama-context.h"
#include "llama-ext.h"
#include "llama-graph.h"
#include "moe_cache.h"
#include "owned.h"

// llama_context keeps its graph and its output buffer private. An explicit instantiation may name private members, and a
// friend function of it can hand one on.
template <auto Member> struct graph_access {
    friend llm_graph_result * last_graph_of(llama_context & ctx) { return (ctx.*Member)(); }
};
llm_graph_result * last_graph_of(llama_context & ctx);
template struct graph_access<&llama_context::get_gf_res_prev>;

template <auto Member> struct output_access {
    friend auto & output_of(llama_context & ctx) { return ctx.*Member; }
};
auto & output_of(llama_context & ctx);
template struct output_access<&llama_context::buf_output>;

bool moebind_has_logits(llama_context * ctx) { return last_graph_of(*ctx)->get_logits() != nullptr; }

ggml_backend_buffer_t moebind_take_output(llama_context * ctx) {
    ctx->synchronize();  // nothing is still being copied into it
    return output_of(*ctx).release();
}

size_t moebind_memory_breakdown(const llama_context * ctx, moebind_memory * parts, size_t n) {
    size_t i = 0;
    const llama_memory_breakdown breakdown = llama_get_memory_breakdown(ctx);
    // It counts the cache of experts as the context's.
    const auto cached = moebind::moe_cache_sizes(*ctx);
    for (const auto & [buft, data] : breakdown) {
        if (i < n) {
            const auto   found     = cached.find(buft);
            const size_t moe_cache = found == cached.end() ? 0 : found->second;
            parts[i]               = { buft, data.model, data.context - moe_cache, data.compute, moe_cache };
        }
        i++;
    }
    return i;
}

void moebind_reserve(llama_context * ctx) {
    const auto lock = moebind::adapters_of(&ctx->get_model());
    ctx->sched_reserve();
}
