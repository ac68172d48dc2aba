// What llama.cpp's cache of experts (src/llama-moe-cache.cpp) would hold: which layers share it, and how much a slot takes.
// And what it counted: vendor/patches/moe-cache-counters.patch has it tell.
#include "llama-context.h"
#include "llama-model.h"
#include "llama-moe-cache.h"
#include "moe_cache.h"
#include "shim.h"

#include <algorithm>
#include <utility>
#include <vector>

// As in context.cpp: a friend hands on what is private.
template <auto Member> struct moe_cache_access {
    friend const auto & moe_cache_of(const llama_context & ctx) { return ctx.*Member; }
};
const auto & moe_cache_of(const llama_context & ctx);
template struct moe_cache_access<&llama_context::moe_cache>;

namespace {

std::vector<const ggml_tensor *> experts_of(const llama_layer & layer) {
    std::vector<const ggml_tensor *> found;
    for (const ggml_tensor * tensor : { layer.ffn_gate_up_exps, layer.ffn_gate_exps, layer.ffn_up_exps, layer.ffn_down_exps }) {
        if (tensor != nullptr) {
            found.push_back(tensor);
        }
    }
    return found;
}

bool same_layout(const ggml_tensor * a, const ggml_tensor * b) {
    return a->type == b->type && ggml_are_same_shape(a, b) && a->nb[2] == b->nb[2];
}

// Where the layer is computed: one of the model's devices, or -1.
int32_t device_of(const llama_model & model, int32_t layer) {
    for (size_t i = 0; i < model.devices.size(); i++) {
        const auto type = ggml_backend_dev_type(model.devices[i].dev);
        if (model.devices[i].dev == model.dev_layer(layer) &&
            (type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU)) {
            return static_cast<int32_t>(i);
        }
    }
    return -1;
}

}  // namespace

size_t moebind_moe_layers(const llama_model * model, moebind_moe_layer * layers, size_t n) {
    size_t                                                            count = 0;
    std::vector<std::pair<int32_t, std::vector<const ggml_tensor *>>> groups;  // device, and experts of the first layer
    for (size_t il = 0; il < model->layers.size(); il++) {
        const auto experts = experts_of(model->layers[il]);
        if (experts.empty()) {
            continue;
        }
        bool              plain = true;  // as ggml has it, in memory that the CPU reads
        moebind_moe_layer found = {};
        found.layer             = static_cast<int32_t>(il);
        found.device            = device_of(*model, found.layer);
        found.n_expert          = static_cast<int32_t>(experts[0]->ne[2]);
        for (const ggml_tensor * tensor : experts) {
            found.nbytes += ggml_nbytes(tensor);
            if (tensor->buffer == nullptr || !ggml_backend_buffer_is_host(tensor->buffer) ||
                ggml_backend_buffer_get_usage(tensor->buffer) != GGML_BACKEND_BUFFER_USAGE_WEIGHTS) {
                plain           = false;
                found.elsewhere = tensor->buffer != nullptr ? ggml_backend_buffer_get_type(tensor->buffer) : nullptr;
            }
        }
        found.group = -1;
        if (plain && found.device >= 0) {
            const auto known = std::find_if(groups.begin(), groups.end(), [&](const auto & group) {
                return group.first == found.device &&
                       std::equal(group.second.begin(), group.second.end(), experts.begin(), experts.end(), same_layout);
            });
            found.group = static_cast<int32_t>(known - groups.begin());
            if (known == groups.end()) {
                groups.emplace_back(found.device, experts);
            }
        }
        if (count < n) {
            layers[count] = found;
        }
        count++;
    }
    return count;
}

size_t moebind_moe_slots_size(const llama_model * model, int32_t layer, int32_t n_slots) {
    const ggml_backend_dev_t device    = model->devices.at(device_of(*model, layer)).dev;
    const size_t             alignment = ggml_backend_buft_get_alignment(ggml_backend_dev_buffer_type(device));
    size_t                   size      = 0;
    for (const ggml_tensor * tensor : experts_of(model->layers.at(layer))) {
        size += GGML_PAD(tensor->nb[2] * (n_slots + 1), alignment);  // CUDA's kernels may read beyond the last
    }
    return size;
}

bool moebind_moe_cache_counters(llama_context * ctx, moebind_moe_counters * counters) {
#ifdef MOEBIND_WITHOUT_MOE_CACHE_COUNTERS
    return false;
#else
    const auto & cache = moe_cache_of(*ctx);
    if (cache == nullptr) {
        return false;
    }
    const auto counted = cache->counts();
    *counters          = { counted.n_slots, counted.hits, counted.misses, counted.bytes, counted.copied };
    return true;
#endif
}

std::map<ggml_backend_buffer_type_t, size_t> moebind::moe_cache_sizes(const llama_context & ctx) {
    const auto & cache = moe_cache_of(ctx);
    if (cache == nullptr) {
        return {};
    }
    return cache->memory_breakdown();
}
