# Compilers' sanitizers in moebind and in llama.cpp, for tools/sanitize.py, which loads what they need.
#
# What is instrumented reads files, texts and pictures, holds objects, and runs threads. Kernels of ggml-cpu are as in any
# other build: they take most of the time to compile and to run, and get what the rest has checked. Of UBSan's checks, those
# of every access to memory are left out, most of what AddressSanitizer would not see of them being alignment.
if(NOT MOEBIND_SANITIZE)
  return()
endif()
if(MOEBIND_SANITIZE STREQUAL "address")
  set(sanitize -fsanitize=address,undefined -fno-sanitize=vptr,null,alignment,object-size,pointer-overflow)
elseif(MOEBIND_SANITIZE STREQUAL "thread")
  set(sanitize -fsanitize=thread)
else()
  message(FATAL_ERROR "MOEBIND_SANITIZE=${MOEBIND_SANITIZE}: it takes address or thread")
endif()
set(compiled ${sanitize} -fno-omit-frame-pointer -O1 -g1)
set(threads ${compiled})
if(MOEBIND_SANITIZE STREQUAL "thread")
  list(APPEND threads -UGGML_USE_OPENMP) # whose barriers are not seen; ggml's own threads take its place
endif()

foreach(target IN LISTS MOEBIND_LIBRARIES ITEMS _libllama)
  target_link_options(${target} PRIVATE ${sanitize})
  if(NOT target STREQUAL "ggml-cpu")
    target_compile_options(${target} PRIVATE ${compiled})
  endif()
endforeach()
foreach(target IN ITEMS llama-common mtmd _libllama) # in a third of the time, and fast enough
  target_compile_options(${target} PRIVATE -O0)
endforeach()
# Its threads, and how they share a graph. Paths are absolute: another folder's relative ones would be taken for ours.
get_target_property(folder ggml-cpu SOURCE_DIR)
set_property(SOURCE "${folder}/ggml-cpu/ggml-cpu.c" "${folder}/ggml-cpu/ggml-cpu.cpp" DIRECTORY "${folder}"
  APPEND PROPERTY COMPILE_OPTIONS ${threads})
