# How ggml-cuda is built: a library that nothing links. libggml loads it when it lists its backends
# (native/replaced/cuda_loader.cpp), or says why it cannot, so that neither a missing driver nor a missing cuBLAS stops
# `import moebind`. That also allows VMM, the better pool of scratch memory, which needs the driver's library.
if(NOT "cuda-loader" IN_LIST MOEBIND_WITHOUT)
foreach(property IN ITEMS LINK_LIBRARIES INTERFACE_LINK_LIBRARIES)
  get_target_property(linked ggml ${property})
  list(FILTER linked EXCLUDE REGEX "ggml-cuda")
  set_property(TARGET ggml PROPERTY ${property} ${linked})
endforeach()
add_dependencies(ggml ggml-cuda)
target_sources(ggml PRIVATE native/replaced/cuda_loader.cpp)
# The registry calls ours by a name of its own: one that libggml-cuda exports, too, could take its place.
target_compile_definitions(ggml PRIVATE GGML_USE_CUDA ggml_backend_cuda_reg=moebind_cuda_backend)
target_link_libraries(ggml PRIVATE ${CMAKE_DL_LIBS})
target_include_directories(ggml PRIVATE vendor/llama.cpp/ggml/src)
endif()

target_include_directories(ggml-cuda SYSTEM PRIVATE ${MOEBIND_CUDA_INCLUDE})
# The driver's stand-in has no symbols. And an RPATH, unlike a RUNPATH, is also for what the libraries below load
# themselves: cuBLAS loads nvrtc.
target_link_options(ggml-cuda PRIVATE LINKER:--no-as-needed,--disable-new-dtags)
set_target_properties(ggml-cuda PROPERTIES
  LIBRARY_OUTPUT_DIRECTORY "$<TARGET_FILE_DIR:ggml>"
  BUILD_RPATH "${MOEBIND_CUDA_FOLDERS}"
  INSTALL_RPATH "$ORIGIN${MOEBIND_CUDA_RPATH}")

if(MOEBIND_CUDA_SMOKE)
  include(CudaSmoke)
endif()
