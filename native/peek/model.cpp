// What a model is made of, as far as llama.h does not tell: its devices, its tensors and where they were placed.
#include "ggml-backend-impl.h"
#include "llama-ext.h"
#include "llama-model.h"
#include "shim.h"

#include <algorithm>
#include <cstring>

int32_t moebind_model_n_expert(const llama_model * model) { return llama_model_n_expert(model); }

int32_t moebind_model_n_expert_used(const llama_model * model) {
    return static_cast<int32_t>(model->hparams.n_expert_used_max());
}

int32_t moebind_model_head_width(const llama_model * model) {
    uint32_t widest = 0;
    for (uint32_t layer = 0; layer < model->hparams.n_layer(); layer++) {
        widest = std::max({ widest, model->hparams.n_embd_head_k(layer), model->hparams.n_embd_head_v(layer) });
    }
    return static_cast<int32_t>(widest);
}

int32_t moebind_model_odd_key(const llama_model * model, int32_t block) {
    for (uint32_t layer = 0; layer < model->hparams.n_layer(); layer++) {
        const uint32_t width = model->hparams.n_embd_head_k(layer);
        if (width % static_cast<uint32_t>(block) != 0) {
            return static_cast<int32_t>(width);
        }
    }
    return 0;
}

int32_t moebind_model_n_embd_inp_enc(const llama_model * model) {
    return static_cast<int32_t>(model->hparams.n_embd_inp_enc());
}

int32_t moebind_model_n_devices(const llama_model * model) { return llama_model_n_devices(model); }

ggml_backend_dev_t moebind_model_device(const llama_model * model, int32_t i) {
    return llama_model_get_device(model, i);
}

size_t moebind_model_tensors(const llama_model * model, moebind_tensor * tensors, size_t n) {
    const auto & placed = llama_internal_get_tensor_map(model);
    for (size_t i = 0; i < n && i < placed.size(); i++) {
        const ggml_tensor * tensor = placed[i].second;
        tensors[i].name            = placed[i].first.c_str();
        tensors[i].nbytes          = ggml_nbytes(tensor);
        tensors[i].buft            = tensor->buffer ? ggml_backend_buffer_get_type(tensor->buffer) : nullptr;
    }
    return placed.size();
}

const char * moebind_model_unreadable(const llama_model * model) {
    for (const auto & [name, tensor] : llama_internal_get_tensor_map(model)) {
        if (tensor->buffer == nullptr || tensor->buffer->iface.get_tensor == nullptr) {
            return name.c_str();
        }
    }
    return nullptr;
}

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

bool moebind_model_splits_tensors(const llama_model * model) { return model->split_mode() == LLAMA_SPLIT_MODE_TENSOR; }

int64_t moebind_model_n_pos(const llama_model * model) { return model->pos_embd ? model->pos_embd->ne[1] : 0; }

int64_t moebind_model_n_scores(const llama_model * model) {
    const ggml_tensor * head = model->cls_out ? model->cls_out : model->cls;
    return head ? head->ne[1] : 0;
}
