// What it reads of the weights to compute one token, from the graph that llama.cpp makes for it: no list of names is needed.
#include "counted_memory.h"
#include "llama-context.h"
#include "llama-ext.h"
#include "llama-memory.h"
#include "llama-model.h"
#include "owned.h"

#include <string>
#include <unordered_map>

static const ggml_tensor * whole(const ggml_tensor * tensor) {
    while (tensor->view_src != nullptr) {
        tensor = tensor->view_src;
    }
    return tensor;
}

// Bytes of an argument that a node reads for one token, if the graph has n_tokens.
static size_t bytes_read(const ggml_tensor * node, int at, size_t n_tokens) {
    const ggml_tensor * weight = node->src[at];
    if (node->op == GGML_OP_GET_ROWS && at == 0) {
        return ggml_nelements(node->src[1]) / n_tokens * ggml_row_size(weight->type, weight->ne[0]);
    }
    if (node->op == GGML_OP_MUL_MAT_ID && at == 0) {
        return node->src[2]->ne[0] * weight->nb[2];  // the experts that are used
    }
    if (node->op == GGML_OP_ADD_ID && at == 1) {
        return node->src[2]->ne[0] * weight->nb[1];  // their biases
    }
    return ggml_nbytes(weight);
}

size_t moebind_token_reads(llama_context * ctx, moebind_tensor * reads, size_t n) {
    const auto     lock   = moebind::adapters_of(&ctx->get_model());
    const uint32_t n_seqs = ctx->n_seq_max();  // a token of each: a cache with a part for each sequence allows no fewer
    const llama_memory_context_ptr memory = ctx->get_memory() != nullptr ? ctx->get_memory()->init_full() : nullptr;
    const moebind_unsplit          unsplit;
    ggml_cgraph * graph = ctx->graph_reserve(n_seqs, n_seqs, n_seqs, memory.get(), true);

    const auto &                                         placed = llama_internal_get_tensor_map(&ctx->get_model());
    std::unordered_map<const ggml_tensor *, size_t>      found;
    std::unordered_map<std::string, const ggml_tensor *> cached;  // by the names that a cache of experts gives them
    for (const auto & [name, tensor] : placed) {
        found[tensor]               = 0;
        cached["moe_cache." + name] = tensor;
    }
    for (int i = 0; i < ggml_graph_n_nodes(graph); i++) {
        const ggml_tensor * node = ggml_graph_node(graph, i);
        if ((node->flags & GGML_TENSOR_FLAG_COMPUTE) == 0) {
            continue;  // of another kind of batch
        }
        if (node->op == GGML_OP_VIEW || node->op == GGML_OP_RESHAPE || node->op == GGML_OP_PERMUTE || node->op == GGML_OP_TRANSPOSE) {
            continue;  // these only describe
        }
        for (int at = 0; at < GGML_MAX_SRC; at++) {
            if (node->src[at] == nullptr) {
                continue;
            }
            // What a cache of experts has is not known: all are read where they come from.
            const auto origin = cached.find(node->src[at]->name);
            const auto weight = found.find(origin == cached.end() ? whole(node->src[at]) : origin->second);
            if (weight != found.end()) {
                weight->second += bytes_read(node, at, n_seqs);
            }
        }
    }
    size_t i = 0;
    for (const auto & [tensor, nbytes] : found) {
        if (i < n) {
            reads[i] = { tensor->name, nbytes, tensor->buffer != nullptr ? ggml_backend_buffer_get_type(tensor->buffer) : nullptr };
        }
        i++;
    }
    return i;
}
