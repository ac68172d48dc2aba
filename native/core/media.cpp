// libmtmd as C: its decoders without the ones that start programs, and what a projector would take of memory.
#include "guard.h"
#include "internal.h"

#include "mtmd-helper.h"

#include <algorithm>
#include <stdexcept>

mtmd_bitmap * moebind_bitmap_decode(const mtmd_context * ctx, const unsigned char * data, size_t size) {
    const mtmd_helper_bitmap_wrapper made =
        mtmd_helper_bitmap_init_from_buf(ctx, data, size, false, mtmd_helper_init_opt_default());
    if (made.video_ctx != nullptr) {  // the caller recognises formats, and takes no videos
        mtmd_bitmap_free(made.bitmap);
        mtmd_helper_video_free(made.video_ctx);
        throw std::invalid_argument("this is a video");
    }
    return made.bitmap;
}

size_t moebind_mtmd_memory_of(const char * path, mtmd_context_params params, moebind_mtmd_memory * parts, size_t n,
                              int32_t * image_tokens_max) {
    const mtmd_memory_usage usage = mtmd_get_memory_usage(path, params);
    *image_tokens_max             = usage.image_max_tokens;
    size_t count                  = 0;
    for (const auto & [device, size] : usage.backend_mem_usage) {
        if (count < n) {
            parts[count] = { device, size };
        }
        count++;
    }
    return count;
}
