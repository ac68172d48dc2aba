# Compile through ccache where there is one. Paths are rewritten relative to the checkout and the
# working directory is left out of the hash, so that a second checkout hits what the first one compiled.
find_program(MOEBIND_CCACHE ccache)
if(MOEBIND_CCACHE AND NOT CMAKE_C_COMPILER_LAUNCHER)
  set(launcher ${CMAKE_COMMAND} -E env "CCACHE_BASEDIR=${CMAKE_SOURCE_DIR}" CCACHE_NOHASHDIR=1
    CCACHE_SLOPPINESS=time_macros ${MOEBIND_CCACHE})
  set(CMAKE_C_COMPILER_LAUNCHER ${launcher})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${launcher})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${launcher})
endif()
