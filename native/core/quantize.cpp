// llama_model_quantize has no callback. vendor/patches/quantize-watch.patch has it tell which tensor it is at. There it can be
// stopped: an exception unwinds it between two tensors, when none of its threads is running.
#include "guard.h"
#include "internal.h"

#include "llama-ext.h"

#include <string>

#ifdef MOEBIND_WITHOUT_QUANTIZE_WATCH
struct llama_quant_watch {
    void (*tensor)(void * data, const ggml_tensor * tensor, ggml_type target, int at, int count);
    void * data;
};
static void llama_quant_set_watch(llama_quant_watch) {}
#endif

namespace {

struct stopped {};  // no std::exception, which llama_model_quantize would catch

struct watch {
    moebind_hooks * hooks;
    std::string     rows;

    watch(moebind_hooks * hooks) : hooks(hooks) { llama_quant_set_watch({ see, this }); }
    ~watch() { llama_quant_set_watch({ nullptr, nullptr }); }

    static void see(void * data, const ggml_tensor * tensor, ggml_type target, int at, int count) {
        watch & seen = *static_cast<watch *>(data);
        if (!moebind::progress(seen.hooks, at / (float) count)) {
            throw stopped{};
        }
        seen.rows.append(ggml_get_name(tensor)).push_back('\0');
        seen.rows.append(target == tensor->type ? "" : ggml_type_name(target)).push_back('\0');
    }
};

std::string & last_rows() {
    thread_local std::string rows;
    return rows;
}

}  // namespace

int32_t moebind_quantize(const char * source, const char * target, const llama_model_quantize_params * params,
                         moebind_hooks * hooks) {
    if (params->dry_run) {
        moebind::note_stopping();  // its warnings are in what it tells, and come again with the real run
    }
    watch seen(hooks);
    try {
        const uint32_t failed = llama_model_quantize(source, target, params);
        last_rows()           = std::move(seen.rows);
        return failed == 0 ? 0 : 1;
    } catch (const stopped &) {
        return 2;
    }
}

size_t moebind_quantize_rows(char * buffer, size_t size) {
    const std::string & rows = last_rows();
    rows.copy(buffer, size);
    return rows.size();
}
