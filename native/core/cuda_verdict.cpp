// Whether CUDA is in this build, and why it is not used where it is.
#include "build_info.h"
#include "shim.h"

const char * moebind_cuda_verdict(void) { return MOEBIND_CUDA_VERDICT; }

#if GGML_CUDA && !defined(MOEBIND_WITHOUT_CUDA_LOADER)
extern "C" const char * moebind_cuda_unloaded(void);  // replaced/cuda_loader.cpp, in libggml.so

const char * moebind_cuda_failure(void) { return moebind_cuda_unloaded(); }
#else
const char * moebind_cuda_failure(void) { return ""; }
#endif
