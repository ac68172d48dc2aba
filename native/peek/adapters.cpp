// The list of a model's adapters, which a model does not lock: contexts read it when they make graphs, since these need room for
// all adapters.
#include "counted_memory.h"
#include "llama-adapter.h"
#include "owned.h"

llama_context * moebind_context_new(llama_model * model, llama_context_params params) {
    const auto lock = moebind::adapters_of(model);
    return llama_init_from_model(model, params);
}

llama_context * moebind_context_counted(llama_model * model, llama_context_params params) {
    const auto             lock = moebind::adapters_of(model);
    const moebind_counting counting;
    return llama_init_from_model(model, params);
}

llama_adapter_lora * moebind_adapter_load(llama_model * model, const char * path) {
    const auto lock = moebind::adapters_of(model);
    return llama_adapter_lora_init(model, path);
}

void moebind_adapter_free(llama_adapter_lora * adapter) {
    const auto lock = moebind::adapters_of(adapter->model);
    llama_adapter_lora_free(adapter);
}
