# Compile through ccache where there is one. Paths are rewritten relative to the checkout and the
# working directory is left out of the hash, so that a second checkout hits what the first one compiled.
find_program(MOEBIND_CCACHE ccache)
if(MOEBIND_CCACHE AND NOT CMAKE_C_COMPILER_LAUNCHER)
  # What -march=native means is no part of ccache's hash by itself, and a cache may come to another machine.
  set(cpu "${CMAKE_BINARY_DIR}/native-cpu.txt")
  execute_process(COMMAND ${CMAKE_C_COMPILER} -march=native -dM -E -x c /dev/null OUTPUT_FILE "${cpu}" ERROR_QUIET)
  set(launcher ${CMAKE_COMMAND} -E env "CCACHE_EXTRAFILES=${cpu}" "CCACHE_BASEDIR=${CMAKE_SOURCE_DIR}" CCACHE_NOHASHDIR=1
    CCACHE_SLOPPINESS=time_macros)
  set(CMAKE_C_COMPILER_LAUNCHER ${launcher} ${MOEBIND_CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${launcher} ${MOEBIND_CCACHE})
  # pip gives nvcc the time at which it was installed, so it is told by what is in it.
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${launcher} CCACHE_COMPILERCHECK=content ${MOEBIND_CCACHE})
  set(CMAKE_UNITY_BUILD_RELOCATABLE ON) # no checkout's path in the sources that CMake writes for llama.cpp
else()
  # Failed assertions name their file relative to the checkout, which ccache's way brings about by itself.
  add_compile_options($<$<COMPILE_LANGUAGE:C,CXX>:-fmacro-prefix-map=${CMAKE_SOURCE_DIR}/=>)
endif()
