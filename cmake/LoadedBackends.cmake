# Backends of graphics cards are libraries that nothing links. libggml loads them when it lists its backends
# (native/replaced/backend_loader.cpp), or says why it cannot, so that neither a missing driver nor a missing cuBLAS stops
# `import moebind`.
set(loaded "")
foreach(backend IN ITEMS CUDA VULKAN) # in the order of ggml's registry, which is that of the devices
  if(GGML_${backend})
    string(TOLOWER "ggml-${backend}" target)
    list(APPEND loaded ${target})
  endif()
endforeach()
if(NOT loaded)
  return()
endif()

if(NOT "backend-loader" IN_LIST MOEBIND_WITHOUT)
list(JOIN loaded "|" pattern)
foreach(property IN ITEMS LINK_LIBRARIES INTERFACE_LINK_LIBRARIES)
  get_target_property(linked ggml ${property})
  list(FILTER linked EXCLUDE REGEX "${pattern}")
  set_property(TARGET ggml PROPERTY ${property} ${linked})
endforeach()
add_dependencies(ggml ${loaded})
target_sources(ggml PRIVATE native/replaced/backend_loader.cpp)
# The registry calls ours by a name of its own: one that a backend's library exports, too, could take its place. The others
# are called as they are: GGML_HIP's function is called as CUDA's.
if(GGML_CUDA)
  target_compile_definitions(ggml PRIVATE GGML_USE_CUDA ggml_backend_cuda_reg=moebind_cuda_backend)
endif()
if(GGML_VULKAN)
  target_compile_definitions(ggml PRIVATE GGML_USE_VULKAN ggml_backend_vk_reg=moebind_vulkan_backend)
endif()
target_link_libraries(ggml PRIVATE ${CMAKE_DL_LIBS})
target_include_directories(ggml PRIVATE vendor/llama.cpp/ggml/src)
endif()

foreach(target IN LISTS loaded)
  set_target_properties(${target} PROPERTIES LIBRARY_OUTPUT_DIRECTORY "$<TARGET_FILE_DIR:ggml>")
endforeach()
if(GGML_CUDA)
  include(CudaBackend)
endif()
