# How ggml-cuda is built. That nothing links it (LoadedBackends.cmake) allows VMM, the better pool of scratch memory, which
# needs the driver's library.
target_include_directories(ggml-cuda SYSTEM PRIVATE ${MOEBIND_CUDA_INCLUDE})
# The driver's stand-in has no symbols. And an RPATH, unlike a RUNPATH, is also for what the libraries below load
# themselves: cuBLAS loads nvrtc.
target_link_options(ggml-cuda PRIVATE LINKER:--no-as-needed,--disable-new-dtags)
set_target_properties(ggml-cuda PROPERTIES
  BUILD_RPATH "${MOEBIND_CUDA_FOLDERS}"
  INSTALL_RPATH "$ORIGIN${MOEBIND_CUDA_RPATH}")

if(MOEBIND_CUDA_SMOKE)
  include(CudaSmoke)
endif()
