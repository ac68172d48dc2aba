// What llama.h does not tell about contexts, and what its functions take for granted.
#include "llama-context.h"
#include "llama-graph.h"
#include "llama-model.h"
#include "shim.h"

// llama_context keeps its graphs private; see shim.cpp.
template <auto Member> struct graph_access {
    friend llm_graph_result * last_graph_of(llama_context & ctx) { return (ctx.*Member)(); }
};
llm_graph_result * last_graph_of(llama_context & ctx);
template struct graph_access<&llama_context::get_gf_res_prev>;

bool moebind_has_logits(llama_context * ctx) { return last_graph_of(*ctx)->get_logits() != nullptr; }

int64_t moebind_model_n_pos(const llama_model * model) { return model->pos_embd ? model->pos_embd->ne[1] : 0; }

int64_t moebind_model_n_scores(const llama_model * model) {
    const ggml_tensor * head = model->cls_out ? model->cls_out : model->cls;
    return head ? head->ne[1] : 0;
}
