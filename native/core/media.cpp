// libmtmd as C: its decoders without the ones that start programs, and what a projector would take of memory.
#include "guard.h"
#include "internal.h"

#include "mtmd-helper.h"

#include <cstring>
#include <stdexcept>

// stb_image's, which libmtmd exports: why it failed last in this thread. Not in a build that hides it.
extern "C" __attribute__((weak)) const char * stbi_failure_reason(void);

// stb_image gives what it decoded before it found a JPEG damaged. It looks for a PNG first, and so has failed once anyway.
static bool found_damaged(const unsigned char * data) {
    return data[0] == 0xff && data[1] == 0xd8 && stbi_failure_reason != nullptr &&
           std::strcmp(stbi_failure_reason(), "bad png sig") != 0;
}

mtmd_bitmap * moebind_bitmap_decode(const mtmd_context * ctx, const unsigned char * data, size_t size) {
    mtmd_helper_init_opt options = mtmd_helper_init_opt_default();
    options.video_params.ffmpeg_bin_dir = "/dev/null";  // it would give ffmpeg what it cannot decode
    const mtmd_helper_bitmap_wrapper made = mtmd_helper_bitmap_init_from_buf(ctx, data, size, false, options);
    if (made.video_ctx != nullptr) {  // the caller recognises formats, and takes no videos
        mtmd_bitmap_free(made.bitmap);
        mtmd_helper_video_free(made.video_ctx);
        throw std::invalid_argument("this is a video");
    }
    if (made.bitmap != nullptr && !mtmd_bitmap_is_audio(made.bitmap) && found_damaged(data)) {
        mtmd_bitmap_free(made.bitmap);
        return nullptr;
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
