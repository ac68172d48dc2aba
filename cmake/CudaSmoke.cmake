# MOEBIND_CUDA_SMOKE: a minute instead of an hour, to see that a toolkit is found, that nvcc and the linker take it, and
# that the library is loaded, or is not, as it should be. Computing with it ends in an abort that says so: of the kernels
# a few are there (one with CCCL's headers); for the others stand-ins are made from what the linker would miss.
get_target_property(sources ggml-cuda SOURCES)
list(FILTER sources INCLUDE REGEX "/(ggml-cuda|scale|sum)\\.cu$")
set_property(TARGET ggml-cuda PROPERTY SOURCES ${sources})

# Stands before the linker's command.
set_property(TARGET ggml-cuda PROPERTY RULE_LAUNCH_LINK
  "\"${Python_EXECUTABLE}\" \"${CMAKE_CURRENT_LIST_DIR}/cuda_stand_ins.py\" \"${CMAKE_C_COMPILER}\" \"${CMAKE_NM}\"")
