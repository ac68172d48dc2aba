// What LoRA adapters and control vectors need to know before llama.cpp does.
#include "llama-context.h"
#include "llama-model.h"
#include "shim.h"

#include <cstring>

bool moebind_model_weight(const llama_model * model, const char * name, moebind_weight * weight) {
    const ggml_tensor * tensor = model->get_tensor(name);
    if (tensor == nullptr) {
        return false;
    }
    std::memcpy(weight->ne, tensor->ne, sizeof(weight->ne));
    weight->type      = tensor->type;
    weight->allocated = tensor->buffer != nullptr;
    return true;
}

bool moebind_model_ties_output(const llama_model * model) {
    if (model->output == nullptr) {
        return model->arch == LLM_ARCH_BITNET;  // it multiplies by the embeddings themselves
    }
    return std::strcmp(model->output->name, "token_embd.weight") == 0;
}

void moebind_reserve(llama_context * ctx) { ctx->sched_reserve(); }
