// The type that llama.cpp's quantiser would give each tensor, for plans of a file that is not there yet.
#include "ggml-cpp.h"
#include "llama-ext.h"
#include "shim.h"

#include <memory>
#include <vector>

void moebind_quant_types(const moebind_quant_shape * shape, llama_ftype ftype, moebind_quant_tensor * tensors, size_t n) {
    llama_quant_model_desc described = {};
    described.architecture           = shape->architecture;
    described.n_embd                 = shape->n_embd;
    described.n_ff                   = shape->n_ff;
    described.n_layer                = shape->n_layer;
    described.n_head                 = shape->n_head;
    described.n_head_kv              = shape->n_head_kv;
    described.n_expert               = shape->n_expert;
    described.n_embd_head_k          = shape->n_embd_head_k;
    described.n_embd_head_v          = shape->n_embd_head_v;
    const std::unique_ptr<llama_model, decltype(&llama_model_free)> model(llama_quant_model_from_metadata(&described),
                                                                          llama_model_free);
    llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype                       = ftype;
    const std::unique_ptr<quantize_state_impl, decltype(&llama_quant_free)> state(
        llama_quant_init(model.get(), &params), llama_quant_free);
    const ggml_context_ptr     context(ggml_init({ ggml_tensor_overhead() * (n + 1), nullptr, true }));
    std::vector<ggml_tensor *> chosen;
    std::vector<size_t>        at;
    for (size_t i = 0; i < n; i++) {
        ggml_tensor * tensor = ggml_new_tensor(context.get(), tensors[i].type, GGML_MAX_DIMS, tensors[i].ne);
        ggml_set_name(tensor, tensors[i].name);
        if (llama_quant_tensor_allows_quantization(state.get(), tensor)) {
            chosen.push_back(tensor);
            at.push_back(i);
        }
    }
    std::vector<ggml_type> types(chosen.size());
    llama_quant_compute_types(state.get(), ftype, chosen.data(), types.data(), chosen.size());
    for (size_t i = 0; i < at.size(); i++) {
        tensors[at[i]].type = types[i];
    }
}
